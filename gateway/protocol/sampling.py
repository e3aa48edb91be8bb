"""The sampling parameters that OpenAI's routes share, with their caps. Anything else that an engine accepts
is refused.
"""

from typing import Any

from gateway.errors import InvalidRequest
from gateway.protocol.fields import (
    INT64_MAX,
    INT64_MIN,
    Checker,
    Replaced,
    array,
    boolean,
    empty,
    for_providers,
    hint,
    integer,
    mapping,
    members,
    missing,
    number,
    one_of,
    string,
    too_long,
    too_many,
    unsent,
    wrong_type,
)
from gateway.protocol.structured import check_structured_outputs
from gateway.protocol.tier import check_tier

# Samples run at once in an engine; there are n for each prompt.
CHOICES_MAX = 16
SAMPLES_MAX = 64
# No context is longer. The model's own context is checked when the model is known.
OUTPUT_TOKENS_MAX = 16 * 1024 * 1024
# An engine's own cap (VLLM_MAX_STOP_STRINGS), and OpenAI's.
STOP_STRINGS_MAX = 4
STOP_CHARS_MAX = 256
TOKEN_IDS_MAX = 1024
TOKEN_ID_MAX = 2**31 - 1
LOGIT_BIAS_MAX = 1024
LOGPROBS_MAX = 20
METADATA_KEYS_MAX = 16
METADATA_KEY_CHARS_MAX = 64
METADATA_CHARS_MAX = 512
IDENTIFIER_CHARS_MAX = 512
TEMPLATE_KEYS_MAX = 32
MODEL_CHARS_MAX = 256
TOP_P_LEAST = 1e-6


def check_stop(param: str, value: Any) -> None:
    """One string or a few; an empty one would stop before the first token, or never, depending on the
    engine.
    """
    if type(value) is str:
        _check_stop_string(param, value)
        return
    if type(value) is not list:
        raise wrong_type(param, "a string or an array of strings")
    if len(value) > STOP_STRINGS_MAX:
        raise too_many(param, STOP_STRINGS_MAX, "strings")
    for index, text in enumerate(value):
        _check_stop_string(f"{param}[{index}]", text)


def _check_stop_string(param: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(param, "a string")
    if not value:
        raise empty(param)
    if len(value) > STOP_CHARS_MAX:
        raise too_long(param, STOP_CHARS_MAX)


def check_logit_bias(param: str, value: Any) -> None:
    """Token ids, as strings, to a bias between -100 and 100."""
    if len(mapping(param, value)) > LOGIT_BIAS_MAX:
        raise too_many(param, LOGIT_BIAS_MAX)
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= TOKEN_ID_MAX):
            raise InvalidRequest(f"Invalid '{param}': keys must be token ids.", param)
        if type(bias) not in {int, float} or not -100 <= bias <= 100:
            raise InvalidRequest(f"Invalid '{param}': values must be numbers between -100 and 100.", param)


def check_token_ids(param: str, value: Any, count_max: int = TOKEN_IDS_MAX) -> None:
    """A list of token ids, whether in the vocabulary or not."""
    ids = array(param, value, count_max)
    if ids and set(map(type, ids)) != {int}:
        raise wrong_type(param, "an array of token ids")
    if ids and not (min(ids) >= 0 and max(ids) <= TOKEN_ID_MAX):
        raise InvalidRequest(f"Invalid '{param}': token ids must be between 0 and {TOKEN_ID_MAX}.", param)


def check_metadata(param: str, value: Any) -> None:
    if len(mapping(param, value)) > METADATA_KEYS_MAX:
        raise too_many(param, METADATA_KEYS_MAX, "keys")
    for key, text in value.items():
        if len(key) > METADATA_KEY_CHARS_MAX:
            raise too_long(param, METADATA_KEY_CHARS_MAX)
        if type(text) is not str:
            raise wrong_type(param, "an object of strings")
        if len(text) > METADATA_CHARS_MAX:
            raise too_long(param, METADATA_CHARS_MAX)


def check_template_kwargs(param: str, value: Any) -> None:
    """Plain values only; whether the model takes these names is checked when the model is known."""
    if len(mapping(param, value)) > TEMPLATE_KEYS_MAX:
        raise too_many(param, TEMPLATE_KEYS_MAX, "keys")
    for member in value.values():
        if type(member) not in {bool, int, float, str, type(None)}:
            raise wrong_type(param, "an object of plain values")


def check_top_p(param: str, value: Any) -> None:
    """OpenAI allows 0, which leaves only the likeliest token; vLLM needs a small number instead."""
    number(0, 1)(param, value)
    if value == 0:
        raise Replaced(TOP_P_LEAST)


check_output_tokens = integer(1, OUTPUT_TOKENS_MAX)
check_choices = integer(1, CHOICES_MAX)

# For the caller's own records, or for the gateway; no engine sees them.
ACCOUNT_FIELDS: dict[str, Checker] = {
    "metadata": check_metadata,
    "prompt_cache_key": string(IDENTIFIER_CHARS_MAX),
    "prompt_cache_retention": unsent(one_of("in_memory", "24h")),
    "safety_identifier": for_providers(string(IDENTIFIER_CHARS_MAX)),
    "service_tier": check_tier,
    "store": hint(False),
    "user": for_providers(string(IDENTIFIER_CHARS_MAX)),
}

# Obfuscation pads chunks against guessing their length. It is accepted and not done.
STREAM_OPTIONS: dict[str, Checker] = {
    "include_usage": boolean,
    "continuous_usage_stats": boolean,
    "include_obfuscation": boolean,
}

SAMPLING_FIELDS: dict[str, Checker] = {
    "frequency_penalty": number(-2, 2),
    "ignore_eos": boolean,
    "include_stop_str_in_output": boolean,
    "logit_bias": check_logit_bias,
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0, 10, above_low=True),
    "seed": integer(INT64_MIN, INT64_MAX),
    "skip_special_tokens": boolean,
    "stop": check_stop,
    "stop_token_ids": check_token_ids,
    "stream": boolean,
    "structured_outputs": check_structured_outputs,
    "temperature": number(0, 2),
    "top_k": integer(-1, TOKEN_ID_MAX),
    "top_p": check_top_p,
}

COMPLETION_FIELDS: dict[str, Checker] = {
    **SAMPLING_FIELDS,
    "add_special_tokens": boolean,
    "allowed_token_ids": check_token_ids,
    "max_tokens": check_output_tokens,
    "min_tokens": integer(0, OUTPUT_TOKENS_MAX),
    "n": check_choices,
    "spaces_between_special_tokens": boolean,
    "stream_options": members(STREAM_OPTIONS),
}


def wants_usage(body: dict[str, Any]) -> tuple[bool, bool]:
    """The usage that the caller's `stream_options` ask for: at the end, or on every chunk. They need a
    stream.
    """
    options = body.get("stream_options")
    if options is None:
        return False, False
    if not body.get("stream"):
        raise InvalidRequest("Invalid 'stream_options': allowed only when stream is true.", "stream_options")
    return bool(options.get("include_usage")), bool(options.get("continuous_usage_stats"))


def check_min_tokens(body: dict[str, Any], max_output_tokens: int | None) -> None:
    least = body.get("min_tokens")
    if least is not None and max_output_tokens is not None and least > max_output_tokens:
        raise InvalidRequest(
            f"Invalid 'min_tokens': {least} is more than max_tokens, {max_output_tokens}.", "min_tokens"
        )


def check_model(param: str, value: Any) -> None:
    """A name that can be looked up and written into a header or a label."""
    if type(value) is not str:
        raise wrong_type(param, "a string")
    if not value:
        raise empty(param)
    if len(value) > MODEL_CHARS_MAX:
        raise too_long(param, MODEL_CHARS_MAX)
    if not value.isprintable():
        raise InvalidRequest(f"Invalid '{param}': must be printable.", param)


def model_of(body: dict[str, Any]) -> str:
    """The model that a checked body names."""
    model: str | None = body.get("model")
    if model is None:
        raise missing("model")
    return model
