"""A request that was admitted is settled, also where a mistake of ours comes before it is sent anywhere."""

import json
import time
from pathlib import Path
from typing import Any

from billing.wire.ending import Ending
from gateway.app import Stages
from gateway.clock import Clock
from gateway.lifecycle import Lifecycle
from gateway.metrics import Metrics
from gateway.request import Route
from gateway.routes import ROUTES
from gateway.settings import GatewaySettings
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import Catalogue
from tests.gateway.asking import body


class BrokenOnceAdmitted(Clock):
    """Fails when it is asked for the time that limits are told with: the request holds its reservation by
    then.
    """

    def __init__(self, open_exchanges: dict[str, Any]) -> None:
        super().__init__()
        self._open = open_exchanges

    def at_ms(self, monotonic_s: float) -> int:
        if self._open:
            raise ZeroDivisionError
        return super().at_ms(monotonic_s)


class Connection:
    """A caller's connection on which the whole request is here; keeps the status of the answer."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.status = 0

    def begin(self, status: int, headers: Any) -> None:
        self.status = status

    def write(self, piece: bytes, *, more: bool) -> bool:
        return False

    def on_disconnect(self, callback: Any) -> None:
        """It stays."""

    def is_disconnected(self) -> bool:
        return False

    def stalled_ms(self) -> float:
        return 0.0

    def body_arrived(self) -> bool:
        return True

    def take_body(self) -> bytes:
        return self._body

    async def receive(self) -> Any:
        raise AssertionError("the body is here")


async def test_a_mistake_between_admission_and_sending_leaves_nothing_open(
    catalogue: Catalogue, engine: SimEngine, valkey_url: str, tmp_path: Path
) -> None:
    catalogue.instance(engine.url, engine.key)
    key = catalogue.key(catalogue.tenant("ten_a"))
    stages = Stages(GatewaySettings(redis_url=valkey_url, home=tmp_path), Lifecycle(), Metrics())
    connection = Connection(json.dumps(body("chat")).encode())

    async with stages.running():
        stages.inference.clock = BrokenOnceAdmitted(stages.open_exchanges)
        scope = {
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "extensions": {"taas.connection": connection},
        }
        await stages.inference(ROUTES[Route.CHAT], scope, connection.receive)
        left = dict(stages.open_exchanges)
        stages.open_exchanges.clear()  # what is left open would hold up the end
    assert left == {}
    assert connection.status == 500
    (event,) = catalogue.await_events(1)
    assert event.ending is Ending.GATEWAY_STOPPED
    assert event.produced.output == 0
    assert event.ended_ms >= event.started_ms > time.time() * 1000 - 600_000
