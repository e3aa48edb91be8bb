"""What vLLM is sent for a request."""

from dataclasses import replace
from typing import Any

import orjson

from billing.wire.instance_entry import InstanceEntry, InstanceStatus
from billing.wire.usage_event import CapacityClass
from gateway.request import ParsedRequest
from gateway.upstream import vllm
from gateway.upstream.engine_adapter import EngineCall

SALT = "ab" * 32
INSTANCE = InstanceEntry(
    instance="i1",
    model="m",
    pool="m",
    cell="m",
    url="http://127.0.0.1:9",
    key=None,
    epoch="e1",
    status=InstanceStatus.READY,
)


def call_for(
    parsed: ParsedRequest,
    *,
    by_priority: bool = False,
    class_: CapacityClass = CapacityClass.ON_DEMAND,
    default_max_tokens: int | None = None,
    cache_salt: str = SALT,
) -> EngineCall:
    """The whole request."""
    return vllm.request(
        parsed,
        replace(INSTANCE, priority=by_priority),
        request_id="req_1",
        engine_model="engine-m",
        cache_salt=cache_salt,
        default_max_tokens=default_max_tokens,
        class_=class_,
        cached_prompt=None,
    )


def body_for(
    parsed: ParsedRequest, *, by_priority: bool = False, default_max_tokens: int | None = None
) -> dict[str, Any]:
    """Its body."""
    call = call_for(parsed, by_priority=by_priority, default_max_tokens=default_max_tokens)
    body: dict[str, Any] = orjson.loads(call.body)
    return body
