"""An adapter is a model of its owner on the instances of its base that have loaded it."""

from tests.fixtures.engine import EngineMaker
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.gateway.asking import ask

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
