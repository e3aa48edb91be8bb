"""What a process remembers of the instances that it talks to."""

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from gateway.upstream.engines import Engines


def entry(name: str) -> InstanceEntry:
    return InstanceEntry(
        instance=name, model="m", pool="m", cell="m", url="http://127.0.0.1:1", key=None, epoch="e",
        status=InstanceStatus.READY,
    )  # fmt: skip


async def test_an_instance_that_is_gone_is_forgotten_once_nothing_runs_there() -> None:
    changes: list[tuple[str, bool]] = []
    engines = Engines(1.0, on_breaker=lambda name, is_open: changes.append((name, is_open)))
    for name in ("stays", "goes", "ends"):
        engines.pool(entry(name))
        engines.opened(entry(name))
        engines.breakers.refused(entry(name), 0.0)
    for name in ("stays", "goes"):
        engines.closed(entry(name))
    engines.keep({"stays"})
    assert set(engines.breakers.troubled) == {"stays", "ends"}
    assert engines.open_here == {"stays": 0, "ends": 1}
    assert changes[3:] == [("goes", False)], "a gauge of it would stay"
    engines.closed(entry("ends"))
    engines.keep({"stays"})
    assert set(engines.breakers.troubled) == {"stays"}
    assert engines.open_here == {"stays": 0}
    assert engines.pool(entry("goes")) is not None
