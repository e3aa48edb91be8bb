"""Redis's clock jumps past the leases of instances, or Redis loses their entries, and callers notice
nothing.
"""

import threading
import time

from billing.wire import redis_keys
from tests.fixtures.engine import SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until

LEASE_MS = 5_000
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def test_fault_40_an_instance_whose_lease_a_jump_has_passed_serves_until_nobody_renews_it(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    catalogue.model()
    ahead_ms = 0
    dead, renewed = threading.Event(), threading.Event()

    def renew() -> None:
        """As a worker does; after the jump its leases lie in the past."""
        while not dead.wait(0.25):
            seconds, _ = catalogue.redis.time()
            catalogue.instance(engine.url, engine.key, lease_until_ms=seconds * 1000 + LEASE_MS - ahead_ms)
            renewed.set()

    worker = threading.Thread(target=renew)
    worker.start()
    renewed.wait(10)
    gateway = start_gateway()
    with gateway.client(key) as client:

        def status() -> int:
            return client.post("/v1/chat/completions", json=ASKED).status_code

        try:
            wait_until(lambda: status() == 200, "a served request")
            ahead_ms = 3_600_000
            jumped_s = time.monotonic()
            answers = [status()]
            while time.monotonic() - jumped_s < 2:
                answers.append(status())
        finally:
            dead.set()
            worker.join()
        assert set(answers) == {200}
        wait_until(lambda: status() != 200, "a refusal of an instance that has gone")


def test_fault_35_an_instance_that_redis_has_lost_serves_until_its_lease_ends(
    start_gateway: StartGateway, catalogue: Catalogue, engine: SimEngine
) -> None:
    key = catalogue.key(catalogue.tenant("ten_a"))
    gateway = start_gateway()
    with gateway.client(key) as client:

        def status() -> int:
            return client.post("/v1/chat/completions", json=ASKED).status_code

        seconds, _ = catalogue.redis.time()
        catalogue.instance(engine.url, engine.key, lease_until_ms=seconds * 1000 + LEASE_MS)
        wait_until(lambda: status() == 200, "a served request")
        catalogue.redis.delete(redis_keys.INSTANCES)
        answers, lost_s = [status()], time.monotonic()
        while time.monotonic() - lost_s < 1.5:  # several readings of the registry
            answers.append(status())
        assert set(answers) == {200}
        wait_until(lambda: status() == 503, "a refusal of an instance whose lease has ended")
