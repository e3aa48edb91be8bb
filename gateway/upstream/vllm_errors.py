"""Translates an engine's error answer into what a caller may know. Written for vLLM 0.32.

Only known sentences are passed on, rebuilt from their numbers and names; all others become a general one. So
no host, path, alias, flag, traceback or repeated input of an engine gets out. If the engine refuses the
gateway and not the caller (401, 404), that is our failure.
"""

import re

from gateway.errors import ContextLengthExceeded, EngineFailed, EngineRefused, GatewayError, Overloaded
from gateway.request import AnswerForm, RouteSpec
from gateway.upstream.error_text import LEAK, message_and_param, read_error

RETRY_AFTER_MS = 1000
DETAIL_CHARS_MAX = 200

# Statuses with which an engine refuses the request itself.
_OF_THE_REQUEST = frozenset({400, 413, 415, 422})
_PARAM = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(?:\.[A-Za-z0-9_]{1,64}){0,8}")
# vLLM's own names for parameters that callers know by other names.
_INPUT = frozenset({"input_tokens", "input_text", "prompt_token_ids", "max_model_len"})

_PROMPT_TOO_LONG = re.compile(
    r"maximum context length is (\d+) tokens.*contains (at least )?(\d+) (input tokens|characters)", re.DOTALL
)
_INPUT_TOO_LONG = re.compile(r"Input length \((\d+)\) exceeds model's maximum context length \((\d+)\)")
_OUTPUT_TOO_LONG = re.compile(r"(max_\w*tokens)=(\d+) cannot be greater than max_model_len\s*=\s*(\d+)")
_OUT_OF_VOCABULARY = re.compile(r"Token id (\d+) is out of vocabulary")
_ONE_SIZE = re.compile(r"does not support Matryoshka embeddings; dimensions must be unset")
_SIZES = re.compile(
    r"only supports (?:dimensions in range|Matryoshka dimensions) (\[[\d, ]{1,120}\]), got \d+"
)
_SUFFIX = re.compile(r"\s*\((?:parameter=|value=).*\Z", re.DOTALL)
_VALIDATION = re.compile(r"\A\d+ validation errors?:")
_VALIDATION_REASON = re.compile(r"'msg': (?:'([^'\n]{1,200})'|\"([^\"\n]{1,200})\")")
# A tool's input from the model, parsed by vLLM's messages route once it is complete: not JSON, or not an
# object.
_TOOL_INPUT_NO_OBJECT = re.compile(r"\A\d+ validation errors? for AnthropicContentBlock\ninput\b")
_TOOL_INPUT_NO_JSON = re.compile(
    r"\A(?:Expecting|Extra data|Invalid|Unterminated string|Illegal|end is out of bounds).*line \d+ column "
    r"\d+ \(char \d+\)\Z"
)
# A streamed message that is refused: the refusal is in the text of another error, cut short.
_IN_A_MESSAGES_STREAM = re.compile(
    r"ChatCompletionStreamResponse\n.{0,200}?\{'error': \{'message': '([^'.]{0,40})\.\.\..{0,80}?'code': "
    r"(\d{3})\}",
    re.DOTALL,
)
_THINKING = "thinking_token_budget is set but reasoning_config"


def translate_engine_error(status: int, body: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
    """The error that a caller on `route` gets for an engine's `status` and `body`, which may be anything.

    Never raises. `engine_model` is the engine's own name for the model; nothing that names it is passed on.
    """
    return _translated(status, *message_and_param(read_error(body)), route, engine_model)


def translate_stream_error(event: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
    """The same for the JSON of an error event: the engine had started a stream before it checked the
    request.
    """
    error = read_error(event)
    message, param = message_and_param(error)
    code = error.get("code")
    if type(code) is int:
        return _translated(code, message, param, route, engine_model)
    if found := _IN_A_MESSAGES_STREAM.search(message):
        whole = _THINKING if _THINKING.startswith(found[1]) and found[1] else ""
        return _translated(int(found[2]), whole, None, route, engine_model)
    return EngineFailed()


def _translated(
    status: int, message: str, param: str | None, route: RouteSpec, engine_model: str
) -> GatewayError:
    if status == 429:
        return Overloaded(RETRY_AFTER_MS)
    if status not in _OF_THE_REQUEST:
        return EngineFailed()
    return _known_sentence(message, route) or _general(message, _caller_param(param, route), engine_model)


def _known_sentence(message: str, route: RouteSpec) -> GatewayError | None:
    input_param = route.prompt_param
    if found := _PROMPT_TOO_LONG.search(message):
        return ContextLengthExceeded(
            int(found[1]), int(found[3]), input_param, found[4], at_least=found[2] is not None
        )
    if found := _INPUT_TOO_LONG.search(message):
        return ContextLengthExceeded(int(found[2]), int(found[1]), input_param, "input tokens")
    if found := _OUTPUT_TOO_LONG.search(message):
        return ContextLengthExceeded(
            int(found[3]), int(found[2]), _caller_param(found[1], route) or "max_tokens", "output tokens"
        )
    if found := _OUT_OF_VOCABULARY.search(message):
        return EngineRefused(
            f"Token id {found[1]} is not in the model's vocabulary.", input_param, "invalid_value"
        )
    if _ONE_SIZE.search(message):
        return EngineRefused(
            "The embeddings of this model have one size: leave 'dimensions' out.",
            "dimensions",
            "unsupported_value",
        )
    if found := _SIZES.search(message):
        which = "a number in the range" if "in range" in found[0] else "one of"
        return EngineRefused(f"Invalid 'dimensions': it must be {which} {found[1]}.", "dimensions")
    if message.startswith("Grammar error") or "grammar" in message[:80].lower():
        return EngineRefused(
            "The schema or regular expression cannot be compiled by this model's engine.",
            None,
            "invalid_schema",
        )
    if "tool" in message and ("requires --" in message or "--tool-call-parser" in message):
        return EngineRefused("This model does not support tool calls.", "tools", "unsupported_value")
    if message.startswith(_THINKING):
        param = "thinking" if route.answer is AnswerForm.MESSAGE else "thinking_token_budget"
        return EngineRefused("This model does not think.", param, "unsupported_value")
    if _TOOL_INPUT_NO_OBJECT.match(message):
        return EngineRefused("The model's tool call was not an object.", "tools", "invalid_tool_call")
    if route.answer is AnswerForm.MESSAGE and _TOOL_INPUT_NO_JSON.match(message):
        return EngineRefused("The model's tool call was not valid JSON.", "tools", "invalid_tool_call")
    if "not a multimodal model" in message:
        return EngineRefused("This model accepts only text.", input_param, "unsupported_value")
    return None


def _general(message: str, param: str | None, engine_model: str) -> EngineRefused:
    """What is safe to pass on of an unknown sentence: the parameter, and the reason if it begins with the
    parameter and reveals nothing.
    """
    if param is None:
        return EngineRefused("The model's engine refused the request.")
    if _VALIDATION.match(message):
        found = _VALIDATION_REASON.search(message)
        reason = (found[1] or found[2]) if found else ""
    else:
        bare = _SUFFIX.sub("", message)
        name = param.rsplit(".", 1)[-1]
        reason = bare if re.match(rf"['`]?{re.escape(name)}['`]? ", bare) else ""
    reason = reason.removeprefix("Value error, ").rstrip(".")
    if (
        not reason
        or len(reason) > DETAIL_CHARS_MAX
        or not reason.isprintable()
        or LEAK.search(reason)
        or engine_model in reason
    ):
        return EngineRefused(f"Invalid '{param}'.", param)
    return EngineRefused(f"Invalid '{param}': {reason}.", param)


def _caller_param(param: str | None, route: RouteSpec) -> str | None:
    """The caller's name for the parameter, or None if the caller has no name for it."""
    if param is None:
        return None
    param = param.removeprefix("body.")
    if param in _INPUT:
        return route.prompt_param
    if param == "max_completion_tokens" and route.answer is AnswerForm.MESSAGE:
        return "max_tokens"
    return param if _PARAM.fullmatch(param) else None
