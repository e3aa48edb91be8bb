"""An adapter is a model of its owner on the instances of its base that have loaded it."""

import pytest

from billing.wire import redis_keys
from tests.fixtures.engine import EngineMaker
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway, wait_until
from tests.gateway.asking import ask
from tests.gateway.test_failover import BUSY, WITH_USAGE, figures
from tests.gateway.test_preempt import text_of

ADAPTER = f"{MODEL}:support"


def test_it_goes_to_the_instances_that_have_it_under_the_engines_name(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    without, with_it = make_engine(), make_engine(model=f"{ADAPTER}@1f")
    owner = catalogue.tenant("ten_a")
    catalogue.model(ADAPTER, pool=MODEL, cell=MODEL, owner=owner, visible=[owner])
    catalogue.instance(without.url, without.key, name="without")
    catalogue.instance(
        with_it.url, with_it.key, name="with", engine_model="m", adapters={ADAPTER: f"{ADAPTER}@1f"}
    )
    gateway = start_gateway()
    key, other = catalogue.key(owner), catalogue.key(catalogue.tenant("ten_b"))
    for stream in (False, True):
        outcome = ask(gateway, key, "chat", stream, model=ADAPTER)
        assert outcome.status == 200, outcome.text
        assert f'"model":"{ADAPTER}"' in outcome.text.replace(": ", ":")
        assert "@1f" not in outcome.text
    assert [request["body"]["model"] for request in with_it.requests()] == [f"{ADAPTER}@1f"] * 2
    assert without.requests() == []
    for event in catalogue.await_events(2):
        assert (event.model, event.pool, event.instance) == (ADAPTER, MODEL, "with")
    refused, unknown = (
        ask(gateway, other, "chat", False, model=name) for name in (ADAPTER, f"{MODEL}:nothing")
    )
    assert refused.status == unknown.status == 404
    assert refused.text.replace("support", "nothing") == unknown.text


def test_while_no_instance_has_it_its_owner_is_told_to_try_again(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    engine = make_engine()
    owner = catalogue.tenant("ten_a")
    catalogue.model(ADAPTER, pool=MODEL, cell=MODEL, owner=owner, visible=[owner])
    catalogue.instance(engine.url, engine.key, name="without")
    gateway, key = start_gateway(), catalogue.key(owner)
    refused = ask(gateway, key, "chat", False, model=ADAPTER)
    assert refused.status == 503, refused.text
    assert ask(gateway, key, "chat", False).status == 200
    assert len(engine.requests()) == 1


@pytest.mark.parametrize("death", [("die_before_first_token", "reset"), ("die_after_tokens", "5:reset")])
def test_faults_26_and_27_it_goes_on_where_it_is_loaded_and_nowhere_else(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway, death: tuple[str, str]
) -> None:
    owner = catalogue.tenant("ten_a")
    catalogue.model(ADAPTER, pool=MODEL, cell=MODEL, owner=owner, visible=[owner])
    without, first, other = make_engine(), make_engine(model="a@1f"), make_engine(model="a@2e")
    catalogue.instance(without.url, without.key, name="without")
    catalogue.instance(first.url, first.key, name="first", adapters={ADAPTER: "a@1f"})
    catalogue.instance(other.url, other.key, name="other", adapters={ADAPTER: "a@2e"}, load=BUSY)
    gateway, key = start_gateway(), catalogue.key(owner)
    undisturbed = ask(gateway, key, "chat", True, model=ADAPTER, **WITH_USAGE)
    first.faults(*death)
    answer = ask(gateway, key, "chat", True, model=ADAPTER, **WITH_USAGE)
    assert answer.done
    assert text_of(answer, "chat") == text_of(undisturbed, "chat")
    assert figures(answer) == figures(undisturbed)
    assert [request["body"]["model"] for request in other.requests()] == ["a@2e"]
    other.faults(*death)
    first.faults(*death)
    lost = ask(gateway, key, "chat", True, model=ADAPTER, **WITH_USAGE)
    assert lost.error_code() in {"no_instance", "engine_failed"}
    assert without.requests() == []
    wait_until(lambda: catalogue.redis.zcard(redis_keys.open_requests(MODEL)) == 0, "end of all reservations")
    billed = [event.billed for event in catalogue.events()]
    assert sum(each.output for each in billed) == 2 * figures(undisturbed)["completion_tokens"]
    assert sum(each.prompt for each in billed) == 2 * figures(undisturbed)["prompt_tokens"]
