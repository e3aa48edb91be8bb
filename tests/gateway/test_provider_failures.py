"""A provider that fails: which instance answers instead, what the caller is told, and for how long the
instance is left alone.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from loadtest import plain_http
from tests.fixtures.gateway import MODEL, Catalogue, GatewayProcess, StartGateway, wait_until
from tests.fixtures.provider import PROVIDER_KEY, ProviderMaker, SimProvider
from tests.fixtures.secure_stores import Certificates
from tests.gateway.asking import ask, body, the_event
from tests.gateway.test_faults_in_stream import WITHOUT_TOKENS
from tests.gateway.test_providers import assert_nothing_of_the_provider

DIALECTS = [("openai", "chat"), ("anthropic", "messages")]
PROTOCOL = 502, "upstream_protocol_error", "protocol_error", 0, 0
BUSY = {"running": 50, "waiting": 0, "kv_usage": 0.5}


class Site:
    """A gateway over one or two providers of a dialect; the second one is asked only if it must be."""

    def __init__(
        self, gateway: GatewayProcess, key: str, first: SimProvider, second: SimProvider | None
    ) -> None:
        self.gateway, self.key, self.first, self.second = gateway, key, first, second

    def breaker(self, instance: str = "first") -> float | None:
        (port,) = self.gateway.metrics_ports()
        name = f'taas_instance_breaker{{engine="{instance}"}} '
        page = plain_http.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        return next((float(line.removeprefix(name)) for line in page if line.startswith(name)), None)


@pytest.fixture
def site(
    make_provider: ProviderMaker,
    catalogue: Catalogue,
    start_gateway: StartGateway,
    certificates: Certificates,
):
    def start(dialect: str, *, second: bool = False, **environment: str) -> Site:
        providers = [make_provider(dialect, "--decode-ms", "5") for _ in range(1 + second)]
        for provider, name, load in zip(providers, ("first", "second"), (None, BUSY), strict=False):
            more = {"engine": dialect, "engine_model": "big-1", "abort": False}
            more |= {} if load is None else {"load": load}
            catalogue.instance(provider.url, provider.key, name=name, **more)
        ca_file = certificates.path("ca.pem")
        gateway = start_gateway(TAAS_UPSTREAM_CA_FILE=ca_file, **environment)
        key = catalogue.key(catalogue.tenant("ten_a"))
        return Site(gateway, key, providers[0], providers[1] if second else None)

    return start


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_fault_32_a_limit_of_the_provider_sends_requests_elsewhere_until_it_is_over(
    site, catalogue: Catalogue, dialect: str, route: str, stream: bool
) -> None:
    here = site(dialect, second=True)
    here.first.faults("status", "429:60")
    answers = [ask(here.gateway, here.key, route, stream) for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert {the_event(catalogue, answer).instance for answer in answers} == {"second"}
    assert len(here.first.requests()) == 1
    assert (here.breaker("first"), here.breaker("second")) == (1, None)


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
@pytest.mark.parametrize("status", ["429", "503", "529"])
def test_fault_32_where_there_is_no_other_the_caller_is_told_when_to_come_back(
    site, catalogue: Catalogue, dialect: str, route: str, status: str
) -> None:
    here = site(dialect)
    here.first.faults("status", f"{status}:7")
    refused = ask(here.gateway, here.key, route)
    assert (refused.status, refused.error_code()) == (503, "overloaded")
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("7", "7000")
    assert the_event(catalogue, refused).billed.output == 0
    again = ask(here.gateway, here.key, route)
    assert (again.status, again.error_code()) == (503, "overloaded")
    assert 0 < int(again.headers["retry-after-ms"]) <= 7000
    assert len(here.first.requests()) == 1, "it is not asked before it said"


def test_after_that_time_it_is_asked_again(site) -> None:
    here = site("openai")
    here.first.faults("status", "429:1")
    assert ask(here.gateway, here.key, "chat").status == 503
    wait_until(lambda: ask(here.gateway, here.key, "chat").status == 200, "an answer")
    assert len(here.first.requests()) == 2
    assert here.breaker() == 0


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
@pytest.mark.parametrize("status", [401, 402, 403])
def test_fault_32_a_refused_key_is_the_operators_matter(
    site, catalogue: Catalogue, dialect: str, route: str, status: int
) -> None:
    here = site(dialect)
    here.first.faults("status", status, count=None)
    refused = ask(here.gateway, here.key, route)
    assert (refused.status, refused.error_code()) == (502, "engine_failed")
    again = ask(here.gateway, here.key, route)
    assert (again.status, again.error_code()) == (503, "no_instance")
    assert int(again.headers["retry-after-ms"]) > 10_000
    assert len(here.first.requests()) == 1
    assert "refuses our key" in here.gateway.log()
    assert PROVIDER_KEY not in here.gateway.log()
    assert here.breaker() == 1


def test_a_refused_key_costs_no_caller_an_answer_where_there_is_another(site) -> None:
    here = site("openai", second=True)
    here.first.faults("status", 401, count=None)
    assert [ask(here.gateway, here.key, "chat").status for _ in range(3)] == [200] * 3
    assert len(here.first.requests()) == 1


@pytest.mark.parametrize(
    "fault", [("status", "500"), ("die_before_first_token", "reset"), ("garbage", "html")]
)
def test_a_failing_one_is_left_alone_and_then_probed_by_one_request(site, fault: tuple[str, str]) -> None:
    here = site("openai")
    here.first.faults(*fault, count=None)
    failed = [ask(here.gateway, here.key, "chat").status for _ in range(8)]
    assert set(failed) <= {502, 503}
    assert here.breaker() == 1
    asked = len(here.first.requests())
    assert asked < 8, "an open breaker lets nothing through"
    here.first.reset()
    wait_until(lambda: ask(here.gateway, here.key, "chat").status == 200, "the probe")
    assert here.breaker() == 0
    assert ask(here.gateway, here.key, "chat").status == 200


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
@pytest.mark.parametrize("hang", ["silent", "headers"])
def test_fault_32_one_that_hangs_is_given_up_for_another(
    site, catalogue: Catalogue, dialect: str, route: str, hang: str
) -> None:
    here = site(dialect, second=True, TAAS_FIRST_TOKEN_DEADLINE_S="1")
    here.first.faults("hang", hang)
    began = time.monotonic()
    answer = ask(here.gateway, here.key, route, True)
    assert (answer.status, answer.done) == (200, True)
    assert time.monotonic() - began < 20
    assert the_event(catalogue, answer).instance == "second"


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
def test_fault_32_a_stream_that_is_cut_off_ends_with_an_error_and_without_a_bill(
    site, catalogue: Catalogue, dialect: str, route: str
) -> None:
    here = site(dialect)
    here.first.faults("die_after_tokens", "3:reset")
    answer = ask(here.gateway, here.key, route, True)
    assert (answer.status, answer.done, answer.error_code()) == (200, False, "engine_failed")
    event = the_event(catalogue, answer)
    assert (event.ending, event.usage_source) == ("engine_died", "counted")
    assert (event.billed.prompt, event.billed.output) == (0, 0)
    assert event.produced.output > 0


@pytest.mark.parametrize(("dialect", "route"), [*DIALECTS, ("openai", "messages"), ("anthropic", "chat")])
def test_faults_28_and_29_what_is_no_answer_is_an_error_and_costs_nothing(
    site, catalogue: Catalogue, dialect: str, route: str
) -> None:
    here = site(dialect)
    wrong = [(stream, "garbage", kind) for stream in (True, False) for kind in WITHOUT_TOKENS]
    for stream, *fault in [*wrong, (True, "end_without_done", "3"), (True, "end_without_done", "")]:
        here.first.faults(*fault)
        answer = ask(here.gateway, here.key, route, stream)
        event = the_event(catalogue, answer)
        got = answer.status, answer.error_code(), event.ending, event.billed.prompt, event.billed.output
        begun = fault[0] == "end_without_done"
        assert got == ((200, "engine_failed", "engine_died", 0, 0) if begun else PROTOCOL), (stream, fault)
        assert_nothing_of_the_provider(answer)
        assert ask(here.gateway, here.key, route).status == 200  # else its breaker would open


@pytest.mark.parametrize(("dialect", "route"), DIALECTS)
def test_a_stream_that_drips_is_read_to_its_end(site, catalogue: Catalogue, dialect: str, route: str) -> None:
    here = site(dialect)
    here.first.faults("slow_drip", 40)
    answer = ask(here.gateway, here.key, route, True)
    assert answer.done
    event = the_event(catalogue, answer)
    assert (event.usage_source, event.anomaly) == ("engine", None)
    assert event.model == MODEL


def test_the_probe_need_only_begin_to_answer(site) -> None:
    here = site("openai")
    here.first.faults("status", "429:1")
    assert ask(here.gateway, here.key, "chat").status == 503
    here.first.faults("slow_drip", 1000)
    with here.gateway.client(here.key) as client:
        request = client.build_request("POST", "/v1/chat/completions", json=body("chat", True))
        probe: list[httpx.Response] = []

        def let_through() -> bool:
            probe.append(client.send(request, stream=True))
            return probe[-1].status_code == 200

        wait_until(let_through, "the probe")
        next(probe[-1].iter_raw())
        assert ask(here.gateway, here.key, "chat").status == 200, "while the probe is still being answered"
        for answer in probe:
            answer.close()


def test_while_the_probe_is_out_nothing_else_is_sent(site) -> None:
    here = site("openai", TAAS_FIRST_TOKEN_DEADLINE_S="60")
    here.first.faults("status", "429:1")
    assert ask(here.gateway, here.key, "chat").status == 503
    here.first.faults("hang", "silent", count=None)
    with ThreadPoolExecutor(6) as callers, here.gateway.client(here.key, timeout_s=0.4) as client:

        def keep_asking(_: int) -> None:
            until = time.monotonic() + 3
            while time.monotonic() < until and len(here.first.requests()) < 2:
                with suppress(httpx.TimeoutException):
                    client.post("/v1/chat/completions", json=body("chat"))

        list(callers.map(keep_asking, range(6)))
    assert len(here.first.requests()) == 2, "the first request and one probe"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_that_is_no_object_is_the_models_fault_and_not_its_providers(
    site, catalogue: Catalogue, stream: bool
) -> None:
    """A message cannot say it. The caller is told so, as of an engine of ours, and the provider stays in use.
    What it charges for the call is flagged as unknown.
    """
    here = site("openai", second=True)
    here.first.faults("tool_call", 'look_up:"a word"', count=None)
    tool = {"name": "look_up", "input_schema": {"type": "object"}}
    for _ in range(6):
        refused = ask(here.gateway, here.key, "messages", stream, tools=[tool], max_tokens=60)
        assert refused.error_code() == "invalid_tool_call", refused.text
        assert_nothing_of_the_provider(refused)
        event = the_event(catalogue, refused)
        assert (event.instance, event.billed.output, event.usage_source) == ("first", 0, "unread")
    assert here.breaker() is None
    assert here.second is not None
    assert here.second.requests() == []
