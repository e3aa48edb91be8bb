"""A whole TAAS with a pool that can be sold: simulated engines of a known speed, gateways, and what an
operator sets up, by the admin API.

Speaks HTTP only; it knows the admin API's words for capacity, and nothing of how they are kept.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest import plain_http
from loadtest.children import Child, DidNotStart, answers, free_port, python
from loadtest.own_stack import OwnStack, Served
from loadtest.scenarios.client import Targets
from loadtest.scenarios.speed import EngineSpeed

MODEL = "sim"
POOL = "sim"
_ENGINE_KEY = "sk-engine"
_OPERATOR = "operator"
# Between what is signed and what gateways decide by lies at most one turn of the allocator, which takes a
# second; this is ample.
_EFFECT_S_MAX = 30.0
_TERM = timedelta(days=2)


class ScenarioStack(OwnStack):
    """One pool of `engines` equal machines behind `gateways` gateways. Nothing is pinned: there are more
    processes than cores.
    """

    def __init__(self, folder: Path, speed: EngineSpeed, *, engines: int = 1, gateways: int = 2) -> None:
        ports = [free_port() for _ in range(engines)]
        self.speed = speed
        self.engine_urls = [f"http://127.0.0.1:{port}" for port in ports]
        served = Served(
            MODEL, self.engine_urls[0], speed.context_tokens, _ENGINE_KEY, ("chat", "completions")
        )
        super().__init__(folder, [served], gateways=gateways, pinned=False)
        self.keys: dict[str, str] = {}
        self.tenants: dict[str, str] = {}
        self._engine_ports = ports

    @property
    def targets(self) -> Targets:
        """Where callers send their requests; it may be asked again after a tenant was added."""
        return Targets([f"http://127.0.0.1:{port}/v1" for port in self.ports], dict(self.keys), MODEL)

    @property
    def capacity_units_s(self) -> float:
        """What all engines together can do."""
        return self.speed.capacity_units_s * len(self.engine_urls)

    @property
    def sequences(self) -> int:
        """How many sequences all engines together run at a time."""
        return self.speed.slots * len(self.engine_urls)

    def start(self) -> None:
        """Start all of it. Raises DidNotStart."""
        for number, port in enumerate(self._engine_ports):
            words = ["--port", str(port), "--model", MODEL, "--api-key", _ENGINE_KEY, *self.speed.words()]
            self._start(f"engine-{number}", python("-m", "loadtest.engine", *words)).wait_until(
                answers(f"{self.engine_urls[number]}/health")
            )
        super().start()

    def add_tenant(self, name: str, weight: int = 1) -> None:
        """A tenant with a key and no limits of its own."""
        self.tenants[name] = self.post("tenants", {"name": name, "weight": weight})["tenant"]
        self.keys[name] = self.post("keys", {"tenant": name})["key"]

    def sign(self, tenant: str, units_s: float, overflow: str = "reject") -> str:
        """A contract that is in force when this returns: a request of the tenant is served as reserved at
        every gateway.
        """
        until = datetime.now(UTC) + _TERM
        terms = {
            "tenant": tenant, "pool": POOL, "units": str(round(units_s, 3)), "until": _rfc3339(until),
            "notice_days": 0, "overflow": overflow, "draft": True,
        }  # fmt: skip
        contract: str = self.post("contracts", terms)["contract"]
        self.post(f"contracts/{contract}/sign", {})
        for port in self.ports:
            self._await_class(tenant, port, "reserved")
        return contract

    def engines(self) -> list[Child]:
        """The engines' processes."""
        return [child for child in self._children if child.name.startswith("engine-")]

    def _set_up(self) -> None:
        self.post(
            "models",
            {
                "name": MODEL, "context_tokens": self.speed.context_tokens, "routes": ["chat", "completions"],
                "pool": POOL, "weights": self.speed.weights,
            },
        )  # fmt: skip
        self.post("prices", {"model": MODEL, "input": "0.10", "output": "0.40"})
        for number, url in enumerate(self.engine_urls):
            self.post(
                "instances",
                {
                    "model": MODEL,
                    "url": url,
                    "key": _ENGINE_KEY,
                    "instance": f"engine-{number}",
                    "priority": True,
                },
            )
        self._sell()
        self.add_tenant(_OPERATOR)
        self.key = self.keys[_OPERATOR]

    def _sell(self) -> None:
        """What makes a pool sellable: how many machines it has, and what one of them can do."""
        pool = {"instances": len(self.engine_urls), "headroom": "0.1"}
        answer = self.admin.patch(f"/admin/v1/pools/{POOL}", json=pool)
        if answer.status_code >= 300:
            raise DidNotStart(f"PATCH /admin/v1/pools/{POOL} {pool}: {answer.status_code} {answer.text}")
        self.post("calibrations", calibration(self.speed))

    def _await_class(self, tenant: str, port: int, work_class: str) -> None:
        """Ask for one token until the answer says that it was served in this class."""
        deadline = time.monotonic() + _EFFECT_S_MAX
        while True:
            answer = plain_http.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", timeout=30,
                headers={"authorization": f"Bearer {self.keys[tenant]}"},
                json={"model": MODEL, "messages": [{"role": "user", "content": "sea"}], "max_tokens": 1},
            )  # fmt: skip
            if answer.headers.get("x-taas-class") == work_class:
                return
            if time.monotonic() > deadline:
                told = f"{answer.status_code} {answer.headers.get('x-taas-class')} {answer.text[:300]}"
                raise DidNotStart(
                    f"{tenant} is not served as {work_class} after {_EFFECT_S_MAX:.0f} s: {told}"
                )
            time.sleep(0.2)


def calibration(speed: EngineSpeed) -> dict[str, Any]:
    """What a calibration of this engine finds, as the admin API takes it: known here, because the engine
    is simulated.
    """
    return {
        "pool": POOL, "model": MODEL, "weights": speed.weights,
        "capacity_units_per_second": speed.capacity_units_s, "sequences": speed.slots,
        "tpot_target_ms": round(2 * speed.decode_ms), "ttft_target_ms": 1000, "hardware": "simulated",
        "engine_version": "simulated", "error": 0,
    }  # fmt: skip


@contextmanager
def running(speed: EngineSpeed, *, engines: int = 1, gateways: int = 2) -> Iterator[ScenarioStack]:
    """A stack that runs, and is gone afterwards whatever happens."""
    with TemporaryDirectory(prefix="taas-scenario-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own where we are root
        stack = ScenarioStack(folder, speed, engines=engines, gateways=gateways)
        try:
            stack.start()
            yield stack
        finally:
            stack.stop()


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
