"""A checked request: what a body asks the engine for, whichever route it came by."""

from dataclasses import dataclass
from typing import Any

from loadtest.engine import fields
from loadtest.engine.chat_template import render_chat, render_messages, render_responses
from loadtest.engine.errors import BadRequest, Invalid, NotFound
from loadtest.engine.fields import Body
from loadtest.engine.options import EngineOptions
from loadtest.engine.tokens import (
    VOCABULARY_TOKENS,
    detokenize,
    fingerprint,
    own_words_apart,
    split,
    token_id,
)

N_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tokens` are pieces of text or numbers; `seed` names the text that follows, `first_position` where
    it goes on.
    """

    text: str
    tokens: list[str] | list[int]
    seed: int
    first_position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, checked. `output_max` is never more than the context leaves; 0: it is pooled."""

    route: str
    model: str
    body: Body
    stream: bool
    include_usage: bool
    continuous_usage: bool
    prompts: tuple[Prompt, ...]
    samples: int
    output_asked: int | None
    output_max: int
    output_min: int
    ignore_eos: bool
    stops: tuple[str, ...]
    priority: int
    cache_salt: str
    echo: bool
    logprobs: int | None


def check_model(body: Body, options: EngineOptions) -> str:
    """The model's name; absent means the one that is served."""
    model = body.get("model") or options.model
    if model != options.model:
        raise NotFound(f"The model `{model}` does not exist. Valid aliases: {options.model}.", "model")
    return options.model


def require_model(body: Body, options: EngineOptions) -> str:
    """As `check_model`, where the name must be given."""
    if body.get("model") is None:
        raise Invalid("missing", "body.model", "Field required", body)
    return check_model(body, options)


def read_job(route: str, body: Body, options: EngineOptions) -> Job:
    """Check a body as vLLM would; raises EngineError."""
    match route:
        case "chat":
            text, continued = render_chat(body)
            prompts: tuple[Prompt, ...] = (text_prompt(text, continued),)
            asked, asked_name = _first(body, "max_completion_tokens", "max_tokens")
        case "completions":
            prompts = _completion_prompts(body)
            asked, asked_name = _first(body, "max_tokens", "max_tokens")
            asked = 16 if asked is None else asked
        case "responses":
            prompts = (text_prompt(render_responses(body)),)
            asked, asked_name = _first(body, "max_output_tokens", "max_output_tokens")
        case _:
            prompts = (text_prompt(render_messages(body)),)
            asked, asked_name = _anthropic_max(body), "max_completion_tokens"
    model = (require_model if route == "messages" else check_model)(body, options)
    stream = fields.flag(body, "stream")
    stream_options = fields.mapping(body, "stream_options")
    if stream_options and not stream and route in ("chat", "completions"):
        raise BadRequest(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "stream_options",
        )
    include_usage = fields.flag(stream_options, "include_usage")
    echo = route == "completions" and fields.flag(body, "echo")
    output_max = _output_max(prompts, asked, asked_name, echo, options)
    return Job(
        route=route,
        model=model,
        body=body,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and fields.flag(stream_options, "continuous_usage_stats"),
        prompts=prompts,
        samples=_samples(body) if route in ("chat", "completions") else 1,
        output_asked=asked,
        output_max=output_max,
        output_min=_output_min(body, output_max),
        ignore_eos=fields.flag(body, "ignore_eos"),
        stops=tuple(fields.strings(body, "stop_sequences" if route == "messages" else "stop")),
        priority=fields.integer(body, "priority", 0) or 0,
        cache_salt=str(body.get("cache_salt") or ""),
        echo=echo,
        logprobs=_logprobs(route, body),
    )


def _first(body: Body, name: str, other: str) -> tuple[int | None, str]:
    """The first of two fields that is set, and its name for errors."""
    value = fields.integer(body, name)
    return (value, name) if value is not None else (fields.integer(body, other), other)


def _anthropic_max(body: Body) -> int:
    asked = fields.integer(body, "max_tokens")
    if asked is None:
        raise Invalid("missing", "body.max_tokens", "Field required", body)
    if asked <= 0:
        context = ", 'ctx': {'error': ValueError('max_tokens must be positive')}"
        raise Invalid(
            "value_error", "body.max_tokens", "Value error, max_tokens must be positive", asked, context
        )
    return asked


def text_prompt(text: str, continued: str = "") -> Prompt:
    """A prompt in words, with the text that it is to continue."""
    tokens = split(text)
    if not continued:
        return Prompt(text, tokens, fingerprint(text))
    said = split(continued)
    return Prompt(text + continued, tokens + said, fingerprint(text), len(said))


def _completion_prompts(body: Body) -> tuple[Prompt, ...]:
    given: Any = body.get("prompt")
    if given is None or given == "":
        raise BadRequest(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt"
        )
    if given == []:
        raise BadRequest("You must pass at least one prompt")
    if isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list):
        raise BadRequest("prompt must be a string, a list of strings or of token ids", "prompt")
    return tuple(
        text_prompt(*own_words_apart(item)) if isinstance(item, str) else token_prompt(item) for item in given
    )


def token_prompt(token_ids: list[int]) -> Prompt:
    """A prompt in numbers; raises BadRequest for one that no token has."""
    for number in token_ids:
        if not 0 <= number < VOCABULARY_TOKENS:
            raise BadRequest(f"Token id {number} is out of vocabulary")
    text = detokenize(token_ids)
    return Prompt(text, token_ids, fingerprint(text))


def _samples(body: Body) -> int:
    samples = fields.integer(body, "n", 1)
    assert samples is not None
    if samples < 1:
        raise BadRequest(f"n must be at least 1, got {samples}.")
    if samples > N_MAX:
        raise BadRequest(f"n must be at most {N_MAX}, got {samples}.")
    return samples


def _output_max(
    prompts: tuple[Prompt, ...], asked: int | None, name: str, echo: bool, options: EngineOptions
) -> int:
    context = options.context_tokens
    if asked is not None:
        if asked > context:
            raise BadRequest(
                f"{name}={asked} cannot be greater than max_model_len={context}. Please request fewer "
                "output tokens. "
                f"(parameter={name}, value={asked})",
                name,
            )
        if asked < 1 and not (echo and asked == 0):
            raise BadRequest(
                f"max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})",
                "max_tokens",
            )
    longest = max(len(prompt.tokens) for prompt in prompts)
    if longest >= context:
        raise BadRequest(
            f"This model's maximum context length is {context} tokens. However, your prompt contains at "
            f"least {context + 1} input tokens, "
            "which exceeds this limit even without any output tokens. Please reduce the length of the input "
            "prompt. "
            f"(parameter=input_tokens, value={context + 1})",
            "input_tokens",
        )
    room = context - longest
    return room if asked is None else max(1, min(asked, room))


def _output_min(body: Body, output_max: int) -> int:
    output_min = fields.integer(body, "min_tokens", 0) or 0
    if output_min > output_max:
        raise BadRequest(
            f"min_tokens must be less than or equal to max_tokens={output_max}, got {output_min}."
        )
    temperature = fields.number(body, "temperature", 1.0)
    if temperature < 0:
        raise BadRequest(
            f"temperature must be non-negative, got {temperature}. (parameter=temperature, "
            f"value={temperature})",
            "temperature",
        )
    return output_min


def _logprobs(route: str, body: Body) -> int | None:
    """How many alternatives to report a token, or None for no logprobs."""
    if route == "completions":
        return fields.integer(body, "logprobs")
    if route == "chat" and fields.flag(body, "logprobs"):
        return fields.integer(body, "top_logprobs", 0)
    return None


def prompt_token_ids(prompt: Prompt) -> list[int]:
    """The numbers of a prompt's tokens."""
    return [token if isinstance(token, int) else token_id(token) for token in prompt.tokens]
