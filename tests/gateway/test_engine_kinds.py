"""An instance says what kind of engine it is and what that calls the model; each try is put to it in its
own words.
"""

from tests.fixtures.engine import EngineMaker, SimEngine
from tests.fixtures.gateway import MODEL, Catalogue, StartGateway
from tests.gateway.asking import ask

BUSY = {"running": 50, "waiting": 0, "kv_usage": 0.5}


def test_a_second_try_is_put_in_the_words_of_the_second_instance(
    make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    first, second = make_engine(model="first-name"), make_engine(model="second-name")
    catalogue.model(MODEL, engine_model="a-name-of-no-engine")
    catalogue.instance(first.url, first.key, name="first", engine_model="first-name", priority=False)
    catalogue.instance(
        second.url, second.key, name="second", engine_model="second-name", priority=True, load=BUSY
    )
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    first.faults("status", 500)
    outcome = ask(gateway, key, "chat", False)
    assert outcome.status == 200, outcome.text
    refused, served = first.requests()[-1]["body"], second.requests()[-1]["body"]
    assert (refused["model"], served["model"]) == ("first-name", "second-name")
    assert "priority" not in refused
    assert served["priority"] == 10


def test_an_instance_of_a_kind_that_is_not_known_here_is_asked_nothing(
    engine: SimEngine, make_engine: EngineMaker, catalogue: Catalogue, start_gateway: StartGateway
) -> None:
    odd = make_engine()
    catalogue.instance(odd.url, odd.key, name="odd", engine="an engine of tomorrow")
    catalogue.instance(engine.url, engine.key, name="known", load=BUSY)
    gateway, key = start_gateway(), catalogue.key(catalogue.tenant("ten_a"))
    assert [ask(gateway, key, "chat", False).status for _ in range(3)] == [200] * 3
    assert odd.requests() == []
    assert len(engine.requests()) == 3
