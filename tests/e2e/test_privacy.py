"""What tenants write stays theirs: no other can tell it from the cache, and it stands in no log and on no
metrics page.
"""

import httpx
import pytest

from tests.e2e.raw_caller import CHAT, ROUTES, TOKEN, RawCaller, body_of
from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

CANARY = "xanthocanary73"


def chat(stack: Stack, key: str, prompt: str) -> int:
    """The cached tokens of a chat with this prompt."""
    with stack.gateway.client(key) as client:
        answer = client.post(CHAT, json=body_of(CHAT, prompt, tokens=1, stream=False))
    assert answer.status_code == 200, answer.text
    details = answer.json()["usage"]["prompt_tokens_details"] or {}
    cached: int = details.get("cached_tokens") or 0
    receipt = stack.receipt(answer.headers["x-request-id"], key)
    assert receipt["billed"]["cached"] == cached
    return cached


def test_fault_23_prefix_of_another_tenant_is_not_in_the_cache(stack: Stack) -> None:
    prompt = "A secret of some length that only one of the two tenants has ever sent to this model. " * 10
    (_, first), (_, second) = stack.new_tenant(), stack.new_tenant()
    assert chat(stack, first, prompt) == 0
    assert chat(stack, first, prompt) > 0
    assert chat(stack, second, prompt) == 0
    assert chat(stack, second, prompt) > 0


def test_receipts_of_another_tenant_are_as_if_they_were_not(stack: Stack) -> None:
    _, stranger = stack.new_tenant()
    with stack.gateway.client(stack.key) as client:
        request_id = client.post(CHAT, json=body_of(CHAT, "hi", tokens=1, stream=False)).headers[
            "x-request-id"
        ]
    stack.receipt(request_id)
    with stack.gateway.client(stranger) as client:
        theirs = client.get(f"/v1/usage/requests/{request_id}")
        nobodys = client.get("/v1/usage/requests/req_000000000000000000000000")
    assert (theirs.status_code, theirs.json()) == (nobodys.status_code, nobodys.json())
    assert theirs.status_code == 404


def test_fault_24_what_is_sent_and_answered_is_in_no_log_and_on_no_metrics_page(stack: Stack) -> None:
    text = f"Repeat after me: {CANARY} {CANARY} {CANARY}."
    for path in ROUTES:
        for stream in (True, False):
            with RawCaller(stack, path, body_of(path, text, tokens=8, stream=stream)) as caller:
                assert b" 200 " in caller.read_all()[:20], caller.seen
        with RawCaller(stack, path, body_of(path, text, tokens=500)) as caller:
            caller.read_until(TOKEN[path])
    _refused_with_canary(stack)
    stack.await_rest()
    written = stack.written()
    assert {path.rpartition("/")[2] for path in written} >= {
        "gateway.log",
        "billing.log",
        "worker.log",
        "engine-e2e.log",
    }
    assert all(page for where, page in written.items() if "metrics" in where)
    secrets = (CANARY, stack.key, str((stack.instance() or {})["key"]))
    telling = [(where, secret) for where, page in written.items() for secret in secrets if secret in page]
    assert not telling


def _refused_with_canary(stack: Stack) -> None:
    """Errors of every layer that may quote what was sent: the listener, the gateway, the engine; and an
    unknown field, which is dropped.
    """
    messages = [{"role": "user", "content": CANARY}]
    bad_schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": CANARY}}}
    bodies = (
        {"messages": messages, "max_tokens": 10**9},
        {"messages": messages, "temperature": CANARY},
        {"messages": messages, "response_format": bad_schema},
        {"messages": [{"role": "user", "content": f"{CANARY} " * 3000}]},
        {"messages": messages, "model": CANARY},
    )
    with stack.gateway.client(stack.key) as client:
        unknown = client.post(
            CHAT, json={"model": MODEL, "messages": messages, "max_tokens": 1, CANARY: CANARY}
        )
        assert (unknown.status_code, unknown.headers["x-taas-ignored"]) == (200, CANARY), unknown.text
        refused = [client.post(CHAT, json={"model": MODEL} | body) for body in bodies]
        refused.append(client.post(CHAT, content=f'{{"model": "{CANARY}'.encode()))
        refused.append(client.post(f"/v1/{CANARY}", json={}))
        refused.append(
            client.get("/v1/models", params={CANARY: CANARY}, headers={"authorization": f"Bearer {CANARY}"})
        )
    assert all(400 <= answer.status_code < 500 for answer in refused), [answer.text for answer in refused]
    with pytest.raises(httpx.HTTPStatusError):
        refused[-1].raise_for_status()
