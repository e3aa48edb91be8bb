"""The whole product over another provider's API, without an engine: an operator adds it, both SDKs are
answered, and the books are right.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.fixtures.gateway import wait_until
from tests.fixtures.provider import PROVIDER_KEY, SimProvider
from tests.fixtures.secure_stores import Certificates
from tests.fixtures.stack import PRICE, Stack, empty_stack

SAID: Any = [{"role": "user", "content": "Say something of the sea, and of the wind that is over it."}]
ROUTES = {"openai": ["chat"], "anthropic": ["messages"]}
SLOTS = 2


class Shop:
    """An installation with a model for each dialect, named as the dialect."""

    def __init__(self, stack: Stack, providers: dict[str, SimProvider], key: str) -> None:
        self.stack, self.providers, self.key = stack, providers, key

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.stack.gateway.url}/v1", api_key=self.key, max_retries=0)

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.stack.gateway.url, api_key=self.key, max_retries=0)


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: str, certificates: Certificates
) -> Iterator[Shop]:
    home = tmp_path_factory.mktemp("providers")
    trusted = {"TAAS_UPSTREAM_CA_FILE": certificates.path("ca.pem")}
    with ExitStack() as ending:
        stack = empty_stack(home, postgres_server, ending)
        stack.start_billing(**trusted)
        providers = {}
        for dialect, routes in ROUTES.items():
            provider = providers[dialect] = SimProvider(dialect, certificates, "--decode-ms", "10")
            ending.callback(provider.close)
            provider.start()
            stack.admin("POST", "models", name=dialect, context_tokens=8192, routes=routes)
            stack.admin("POST", "prices", model=dialect, **PRICE)
            add(stack, home, provider)
        _, key = stack.new_tenant()
        stack.gateway = stack.make_gateway(**trusted)
        stack.gateway.start()
        yield Shop(stack, providers, key)


def add(stack: Stack, home: Path, provider: SimProvider) -> None:
    path = home / f"{provider.dialect}.key"
    path.touch(0o600)
    path.write_text(f"{provider.key}\n")
    said = stack.taas(
        "instance", "add", "--model", provider.dialect, "--provider", provider.dialect, "--url",
        f"{provider.url}/v1", "--key-file", str(path), "--engine-model", "big-1", "--instance",
        f"at-{provider.dialect}", "--max-concurrency", str(SLOTS),
    )  # fmt: skip
    assert f"at-{provider.dialect} serves {provider.dialect}" in said
    assert PROVIDER_KEY not in said


def assert_billed(shop: Shop, request_id: str, provider: SimProvider) -> None:
    """To the token that the provider counted, at the model's price."""
    receipt = shop.stack.receipt(request_id, shop.key)
    truth = list(provider.truth().values())[-1]
    counted = {"prompt": truth["prompt"], "cached": truth["cached"], "output": truth["output"]}
    assert receipt["billed"] == receipt["produced"] == counted, receipt
    assert (receipt["usage_source"], receipt["ending"]) == ("engine", "complete")
    assert float(receipt["amount"]) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_openais_sdk_is_answered_and_billed_by_the_providers_figures(shop: Shop, stream: bool) -> None:
    with shop.openai() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="openai", messages=SAID, max_tokens=9, stream=stream
        )
        answer: Any = raw.parse()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else ""
        text = text or answer.choices[0].message.content
    assert text
    assert_billed(shop, raw.headers["x-request-id"], shop.providers["openai"])


def test_anthropics_sdk_is_answered_and_billed_by_the_providers_figures(shop: Shop) -> None:
    for _ in range(2):  # the second one reads what the first one has put into the provider's cache
        with (
            shop.anthropic() as client,
            client.messages.stream(model="anthropic", messages=SAID, max_tokens=9) as stream,
        ):
            message = stream.get_final_message()
            request_id = stream.response.headers["request-id"]
        assert (message.model, message.usage.output_tokens) == ("anthropic", 9)
        assert_billed(shop, request_id, shop.providers["anthropic"])
    assert shop.stack.receipt(request_id, shop.key)["billed"]["cached"] > 0


def test_no_more_requests_run_there_than_it_has_slots(shop: Shop) -> None:
    wait_until(lambda: bool(shop.stack.redis.hget("{c:openai}:room", "m:at-openai")), "its slots")
    provider = shop.providers["openai"]
    provider.faults("slow_drip", 300, count=SLOTS)
    with shop.openai() as client, ExitStack() as open_streams:
        streams = [
            open_streams.enter_context(
                client.chat.completions.create(model="openai", messages=SAID, max_tokens=60, stream=True)
            )
            for _ in range(SLOTS)
        ]
        asked = len(provider.requests())
        with pytest.raises(openai.APITimeoutError):  # it waits for a slot
            client.with_options(timeout=1.5).chat.completions.create(
                model="openai", messages=SAID, max_tokens=1
            )
        assert len(provider.requests()) == asked
        streams[0].close()
        client.chat.completions.create(model="openai", messages=SAID, max_tokens=1)
        assert len(provider.requests()) == asked + 1


def test_the_audit_reads_no_counters_there_and_misses_nothing(shop: Shop) -> None:
    report = shop.stack.audit()
    assert report["residual_tokens"] == 0
    assert {each["instance"]: each["counters"] for each in report["instances"]} == {
        "at-openai": False, "at-anthropic": False,
    }  # fmt: skip
    # Streams that a caller left: the provider did not say what they cost.
    assert {finding["kind"] for finding in report["findings"]} <= {"quarantined"}
    shown = shop.stack.taas("audit")
    assert shown.count(" none") == 2


def test_no_log_and_no_page_has_the_key(shop: Shop) -> None:
    texts = [path.read_text(errors="replace") for path in shop.stack.home.rglob("*.log")]
    assert len(texts) > 1
    assert not [text for text in texts if PROVIDER_KEY in text]
