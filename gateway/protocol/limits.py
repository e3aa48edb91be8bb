"""Checks that depend on the model: context, vocabulary, route, template variables. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from billing.wire.engine_kinds import is_provider
from billing.wire.instance_entry import InstanceEntry
from gateway.errors import ContextLengthExceeded, InvalidRequest, ModelRouteUnsupported, UnsupportedParameter
from gateway.protocol.prompt import greatest_id, longest_ids
from gateway.protocol.refused import NEVER
from gateway.request import ParsedRequest

# The template variables that make models think; an operator lists those that a model takes.
THINKING_VARIABLES = frozenset({"enable_thinking", "thinking", "reasoning_effort", "thinking_budget"})


class ModelLimits(Protocol):
    """What a model's entry in the catalogue says of the requests that it takes."""

    @property
    def context_tokens(self) -> int:
        """Prompt and output together."""

    @property
    def vocabulary_tokens(self) -> int | None:
        """None: not known, so the engine checks it."""

    @property
    def chat_template_kwargs(self) -> frozenset[str]:
        """The template variables that a caller may set."""

    @property
    def routes(self) -> frozenset[str]:
        """The routes that it is offered on."""


def check_against_model(
    parsed: ParsedRequest, model_limits: ModelLimits, serving: Sequence[InstanceEntry] = ()
) -> ParsedRequest:
    """The request as this model takes it. `serving`: its instances for this route. Raises
    ModelRouteUnsupported, ContextLengthExceeded, UnsupportedParameter or InvalidRequest.
    """
    if parsed.route.facts.offered_as not in model_limits.routes:
        raise ModelRouteUnsupported(parsed.model, parsed.route.name)
    body = parsed.body
    _check_context(parsed, body, model_limits.context_tokens)
    if model_limits.vocabulary_tokens is not None:
        _check_vocabulary(parsed, body, model_limits.vocabulary_tokens)
    for name in body.get("chat_template_kwargs") or ():
        if name not in model_limits.chat_template_kwargs:
            if not model_limits.chat_template_kwargs:
                raise UnsupportedParameter("chat_template_kwargs", NEVER["chat_template_kwargs"])
            raise UnsupportedParameter(f"chat_template_kwargs.{name[:64]}", "This model does not take it.")
    if "thinking" in body or "thinking_token_budget" in body:
        at_providers = bool(serving) and all(is_provider(instance.engine) for instance in serving)
        if not at_providers and not model_limits.chat_template_kwargs & THINKING_VARIABLES:
            return _without_budget(parsed)
    return parsed


def _without_budget(parsed: ParsedRequest) -> ParsedRequest:
    """Remove a thinking budget for engines of a model that does not think (its template has no variable for
    it): vLLM would refuse it.
    """
    body = parsed.body
    thinking = body.get("thinking")
    name = "thinking_token_budget" if thinking is None else "thinking"
    if body.get("thinking_token_budget") is None and (
        thinking is None or thinking.get("budget_tokens") is None
    ):
        return parsed
    del body[name]
    return replace(parsed, ignored=(*parsed.ignored, name))


def _check_context(parsed: ParsedRequest, body: dict[str, Any], context_tokens: int) -> None:
    """Exact if the prompt is token ids. The engine counts a text: it refuses one that is too long before that
    costs anything.
    """
    output_tokens = parsed.max_output_tokens or 0
    if output_tokens > context_tokens:
        raise ContextLengthExceeded(
            context_tokens, output_tokens, _output_param(parsed, body), "output tokens"
        )
    route = parsed.route
    if not route.takes_token_ids:
        return
    prompt_param = route.prompt_param
    prompt_tokens = longest_ids(body[prompt_param])
    # A prompt that fills the context leaves no room for an answer.
    asked = prompt_tokens + (output_tokens or int(route.generates))
    if prompt_tokens and asked > context_tokens:
        raise ContextLengthExceeded(
            context_tokens, asked, prompt_param, f"tokens ({prompt_tokens} in the prompt)"
        )


def _output_param(parsed: ParsedRequest, body: dict[str, Any]) -> str:
    first, *others = parsed.route.output_params
    return next((name for name in others if body.get(name) is not None), first)


def _check_vocabulary(parsed: ParsedRequest, body: dict[str, Any], vocabulary_tokens: int) -> None:
    greatest: dict[str, int] = {}
    if parsed.route.takes_token_ids:
        prompt_param = parsed.route.prompt_param
        greatest[prompt_param] = greatest_id(body[prompt_param])
    for param in ("stop_token_ids", "allowed_token_ids"):
        if body.get(param):
            greatest[param] = max(body[param])
    if body.get("logit_bias"):
        greatest["logit_bias"] = max(map(int, body["logit_bias"]))
    for param, token_id in greatest.items():
        if token_id >= vocabulary_tokens:
            raise InvalidRequest(
                f"Invalid '{param}': token id {token_id} is not in the vocabulary of {vocabulary_tokens}.",
                param,
            )
