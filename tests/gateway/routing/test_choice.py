"""A request goes where its prompt was sent before, of its own tenant, model and epoch."""

import time
from dataclasses import replace

from gateway.routing.choice import Choice
from gateway.routing.rank import PREFILL_TOKENS_S
from tests.gateway.routing.gateways import LONG, MODEL, READY, Knowing, entry


def done(choice: Choice) -> None:
    choice.first_token()
    choice.ended(10)


def test_a_prompt_follows_the_one_that_begins_alike() -> None:
    gateway = Knowing()
    first = gateway.choice()
    where = gateway.send(first)
    assert first.decided == {"routed": "load", "cached_expected": 0}
    done(first)
    for number in range(4):
        again = gateway.choice(LONG + str(number) * 600)
        assert gateway.send(again) == where
        assert again.decided["routed"] == "prefix"
        assert 900 < again.decided["cached_expected"] < 1200
        done(again)


def test_prompts_that_have_nothing_in_common_are_spread() -> None:
    gateway = Knowing()
    sent = [gateway.send(gateway.choice(chr(97 + number) * 2_000)) for number in range(8)]
    assert sorted(sent) == sorted("abcd" * 2)
    idle, short = Knowing(), []
    for _ in range(8):
        choice = idle.choice("hello")
        short.append(idle.send(choice))
        done(choice)
    assert sorted(short) == sorted("abcd" * 2)


def test_another_tenant_does_not_follow() -> None:
    gateway = Knowing()
    gateway.send(gateway.choice())
    other = gateway.choice(salt="another")
    gateway.send(other)
    assert other.decided == {"routed": "load", "cached_expected": 0}


def test_an_engine_that_has_started_again_has_nothing_cached() -> None:
    gateway = Knowing()
    first = gateway.choice()
    where = gateway.send(first)
    done(first)
    restarted = [entry(each.instance, epoch="e2") for each in READY]
    again = gateway.choice()
    gateway.send(again, restarted)
    assert again.decided == {"routed": "load", "cached_expected": 0}
    done(again)
    assert gateway.send(gateway.choice(), READY) == where


def test_a_prompt_that_waits_sends_others_elsewhere_until_its_first_token() -> None:
    gateway = Knowing()
    first = gateway.choice()
    where = gateway.send(first)
    gateway.open_here[where] = 40
    elsewhere = gateway.choice()
    assert gateway.send(elsewhere) != where
    assert elsewhere.decided["routed"] == "busy"
    gateway.open_here[where] = 0
    assert sum(gateway.router.load(where).waiting.values()) > 1_000
    done(first)
    done(elsewhere)
    assert not any(load.waiting for load in gateway.router.loads.values())


def test_the_rate_is_as_calibrated_and_then_as_seen() -> None:
    router = Knowing().router
    assert router.rate(replace(MODEL, capacity_mu_s=None)) == PREFILL_TOKENS_S
    calibrated = replace(MODEL, capacity_mu_s=4_000_000)
    assert router.rate(calibrated) == 4_000
    for _ in range(200):
        router.seen_rate(calibrated, 8_000)
    assert 7_900 < router.rate(calibrated) <= 8_000
    router.seen_rate(calibrated, 1e9)
    assert router.rate(calibrated) <= 9_000
    assert router.rate(replace(MODEL, capacity_mu_s=5_000_000)) == 5_000


def test_an_answer_in_one_piece_counts_until_its_prompt_should_be_read() -> None:
    gateway = Knowing()
    choice = gateway.choice(stream=False)
    best = choice.ranked(list(READY))[0]
    choice.sent(best, tells_first_token=False)
    load = gateway.router.load(best.instance)
    assert load.queued(load.unread_at) > 1_000
    assert load.queued(load.unread_at + 100.0) == 0


def test_a_session_keeps_to_its_instance_by_header_or_by_parameter() -> None:
    for name in ({"session": "s"}, {"prompt_cache_key": "s"}):
        gateway = Knowing()
        first = gateway.choice("hello", **name)
        where = gateway.send(first)
        done(first)
        for _ in range(5):
            again = gateway.choice("quite another text", **name)
            assert gateway.send(again) == where
            assert again.decided["routed"] == "session"
            done(again)
        gateway.open_here[where] = 10
        assert gateway.send(gateway.choice("hello", **name)) != where
    other = gateway.choice("hello", session="s", salt="another")
    gateway.send(other)
    assert other.decided["routed"] == "load"


def test_a_header_that_is_too_long_names_no_session() -> None:
    gateway = Knowing()
    gateway.send(gateway.choice("hello", session="s" * 300))
    assert len(gateway.router.index) == 0


def test_requests_that_are_not_sent_yet_know_of_each_other() -> None:
    gateway = Knowing()
    first = [gateway.choice(chr(97 + number) * 2_000).ranked(list(READY))[0].instance for number in range(4)]
    assert sorted(first) == sorted("abcd")
    choice = gateway.choice()
    for _ in range(5):  # as after each wait
        choice.ranked(list(READY))

    def queued() -> float:
        now = time.monotonic()
        return sum(load.queued(now) for load in gateway.router.loads.values())

    before = queued()
    assert before < 4 * 510 + 1_200
    gateway.send(choice)
    assert queued() <= before + 1


def test_one_ready_instance_is_no_choice_and_nothing_is_learned() -> None:
    gateway = Knowing()
    choice = gateway.choice(session="s")
    assert choice.ranked(READY[:1]) == READY[:1]
    choice.sent(READY[0], tells_first_token=True)
    choice.first_token()
    choice.ended(5)
    assert choice.decided == {}
    assert (len(gateway.router.index), gateway.router.loads) == (0, {})


def test_without_memory_for_it_load_alone_decides() -> None:
    gateway = Knowing(index_bytes=0)
    first, second = gateway.choice(session="s"), gateway.choice(session="s")
    assert gateway.send(first) != gateway.send(second)
    assert second.decided == {"routed": "load", "cached_expected": 0}


def test_where_it_was_sent_instead_is_told() -> None:
    gateway = Knowing()
    choice = gateway.choice()
    ranked = choice.ranked(list(READY))
    choice.sent(ranked[2], tells_first_token=True)
    assert choice.decided == {"routed": "next", "cached_expected": 0}


def test_the_engines_own_figure_counts_where_it_is_greater() -> None:
    gateway = Knowing()
    ready = [entry("a", running=3), entry("b", running=1), entry("c", running=2)]
    assert gateway.send(gateway.choice("hello"), ready) == "b"


def test_a_request_that_waits_prefers_the_instance_that_has_its_prompt() -> None:
    gateway = Knowing()
    first = gateway.choice()
    assert first.preferred is None
    where = gateway.send(first)
    assert first.preferred is None
    done(first)
    again = gateway.choice()
    again.ranked(list(READY))
    assert again.preferred is not None
    assert again.preferred[0] == where
    assert 900 < again.preferred[1] < 1_200


def test_an_instance_that_has_just_failed_gets_nothing() -> None:
    gateway = Knowing()
    first = gateway.choice()
    where = gateway.send(first)
    done(first)
    gateway.troubled.add(where)
    assert gateway.send(gateway.choice()) != where
