"""A budget for thinking, which an engine without a reasoning parser refuses: whole with a 400, streamed
in the stream that it has begun.
"""

import json

from loadtest.engine.connection import Exchange
from loadtest.engine.errors import BadRequest
from loadtest.engine.fields import Body
from loadtest.engine.job import Job

_REFUSED = (
    "thinking_token_budget is set but reasoning_config is not configured. Please set --reasoning-parser and/"
    "or --reasoning-config to use "
    "thinking_token_budget."
)
# vLLM's messages route takes the refusal for a chunk of chat, and shows what pydantic says of that.
_ONE = (
    "Field required [type=missing, input_value={'error': {'message': 'th...am': None, 'code': 400}}, "
    "input_type=dict]"
)
_LINK = "For further information visit https://errors.pydantic.dev/2.14/v/missing"
_IN_MESSAGES = (
    f"2 validation errors for ChatCompletionStreamResponse\nmodel\n  {_ONE}\n    "
    f"{_LINK}\nchoices\n  {_ONE}\n    {_LINK}"
)


def wants_thinking(body: Body) -> bool:
    """Whether the request sets a budget for thinking."""
    thinking = body.get("thinking")
    enabled = isinstance(thinking, dict) and thinking.get("type") == "enabled"
    return enabled or body.get("thinking_token_budget") is not None


def refuse_thinking(job: Job, exchange: Exchange) -> None:
    """Answer as vLLM does. Raises BadRequest where nothing of a stream has been sent."""
    refused = BadRequest(_REFUSED)
    if not job.stream:
        raise refused
    exchange.start_stream()
    if job.route == "messages":
        error = {"type": "error", "error": {"type": "internal_error", "message": _IN_MESSAGES}}
        exchange.chunk(b"event: error\ndata: %b\n\n" % json.dumps(error, separators=(",", ":")).encode())
    else:
        exchange.chunk(b"data: %b\n\n" % json.dumps(refused.body()).encode())
        exchange.chunk(b"data: [DONE]\n\n")
    exchange.end_stream()
