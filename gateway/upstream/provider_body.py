"""The body of a request to a provider: the caller's, without what only our engines know. Pure.

A member that a provider does not know is refused by name, unless its value asks for nothing that the provider
does not do anyway. Members of the account (metadata, tier) stay here. The name of the caller's end user goes
out as a keyed hash: the provider can tell end users apart, and stop one of them, without learning who it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

from gateway.errors import UnsupportedParameter
from gateway.request import Dialect, ParsedRequest

# What stays here: the gateway itself acts on it.
_NOT_THE_PROVIDERS: Final = frozenset({"metadata", "prompt_cache_key", "service_tier", "stream_options"})
_MARK: Final = "cache_control"
NOT_KNOWN: Final = "This model is served by a provider that does not know it."

# By member, the values that ask for nothing.
EngineOnly = Mapping[str, tuple[Any, ...]]
# Members that our parsers take on OpenAI's routes and that only engines know.
ENGINE_ONLY: Final[EngineOnly] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "ignore_eos": (False,),
    "include_reasoning": (True, False),
    "include_stop_str_in_output": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "top_k": (-1, 0),
}


def refuse_continuous_usage(parsed: ParsedRequest) -> None:
    """Only engines report usage with each piece. Raises UnsupportedParameter."""
    if parsed.wants_continuous_usage:
        raise UnsupportedParameter("stream_options.continuous_usage_stats", NOT_KNOWN)


def end_user(parsed: ParsedRequest, cache_salt: str) -> str | None:
    """The caller's name for its end user, hashed with its tenant's salt; None if it gives none."""
    given = {aside.name: aside.value for aside in parsed.aside if aside.holder is parsed.body}
    if parsed.route.dialect is Dialect.ANTHROPIC:
        given = parsed.body.get("metadata") or {}
    name = given.get("safety_identifier") or given.get("user") or given.get("user_id")
    if not name:
        return None
    return blake2b(name.encode(), key=bytes.fromhex(cache_salt), digest_size=16).hexdigest()


@contextmanager
def cache_marks(parsed: ParsedRequest) -> Iterator[None]:
    """While it is open, the body has the caller's marks of what is to be cached. A mark holds for five
    minutes, because a longer one has a price of its own.
    """
    marked = [aside.holder for aside in parsed.aside if aside.name == _MARK]
    for holder in marked:
        holder[_MARK] = {"type": "ephemeral"}
    try:
        yield
    finally:
        for holder in marked:
            del holder[_MARK]


def provider_body(body: Mapping[str, Any], engine_model: str, unknown: EngineOnly) -> dict[str, Any]:
    """A body of its own for the provider; no null is sent. Raises UnsupportedParameter for a member in
    `unknown` that asks for something.
    """
    kept = {}
    for name, value in body.items():
        if value is None or name in _NOT_THE_PROVIDERS:
            continue
        if name in unknown:
            if not any(value == harmless and type(value) is not str for harmless in unknown[name]):
                raise UnsupportedParameter(name, NOT_KNOWN)
            continue
        kept[name] = value
    kept["model"] = engine_model
    return kept
