"""The inference routes of a gateway: one row each. Everything that depends on a route reads it here."""

from collections.abc import Mapping
from typing import Final

from billing.wire.routes import ROUTE_FACTS, Route
from gateway.protocol import chat, completions, embeddings, messages, responses, scoring, tokenize
from gateway.request import AnswerForm, RouteSpec

# Parameters with which a stream can be resumed: its text carries their effect, or only the caller's answer
# shows it. Any other parameter has state inside the engine (a seed's random numbers, a grammar, log
# probabilities), or is unknown.
_CONTINUED: Final = frozenset(
    {
        "model", "stream", "stream_options", "n", "max_tokens", "min_tokens", "stop", "stop_token_ids",
        "ignore_eos", "include_stop_str_in_output", "temperature", "top_p", "top_k", "min_p",
        "repetition_penalty", "logit_bias", "add_special_tokens", "skip_special_tokens",
        "spaces_between_special_tokens", "metadata", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "store", "user",
    }
)  # fmt: skip
_CONTINUED_CHAT: Final = _CONTINUED | {
    "messages", "max_completion_tokens", "modalities", "add_generation_prompt", "continue_final_message",
    "chat_template_kwargs", "reasoning_effort", "include_reasoning", "tool_choice", "function_call",
    "parallel_tool_calls", "top_logprobs", "verbosity",
}  # fmt: skip
_CONTINUED_COMPLETIONS: Final = _CONTINUED | {"prompt", "best_of"}


_ROWS: Final = (
    RouteSpec(
        facts=ROUTE_FACTS[Route.CHAT],
        parser=chat.parse,
        answer=AnswerForm.CHAT,
        prompt_param="messages",
        output_params=("max_tokens", "max_completion_tokens"),
        continued=_CONTINUED_CHAT,
        summary="Chat completion (OpenAI)",
        required=("messages",),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.COMPLETIONS],
        parser=completions.parse,
        answer=AnswerForm.COMPLETION,
        prompt_param="prompt",
        takes_token_ids=True,
        output_params=("max_tokens",),
        continued=_CONTINUED_COMPLETIONS,
        summary="Text completion (OpenAI)",
        required=("prompt",),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.RESPONSES],
        parser=responses.parse,
        answer=AnswerForm.RESPONSE,
        prompt_param="input",
        output_params=("max_output_tokens",),
        summary="Stateless response (OpenAI)",
        required=("input",),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.EMBEDDINGS],
        parser=embeddings.parse,
        answer=AnswerForm.POOLED,
        prompt_param="input",
        takes_token_ids=True,
        summary="Embeddings (OpenAI)",
        required=("input",),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.RERANK],
        parser=scoring.parse_rerank,
        answer=AnswerForm.POOLED,
        prompt_param="documents",
        summary="Documents by relevance to a query (Jina, Cohere)",
        required=("query", "documents"),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.SCORE],
        parser=scoring.parse_score,
        answer=AnswerForm.POOLED,
        prompt_param="text_2",
        summary="Scores of pairs of texts (vLLM)",
        required=("text_1", "text_2"),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.MESSAGES],
        parser=messages.parse,
        answer=AnswerForm.MESSAGE,
        prompt_param="messages",
        output_params=("max_tokens",),
        summary="Message (Anthropic)",
        required=("messages", "max_tokens"),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.COUNT_TOKENS],
        parser=messages.parse_count,
        answer=AnswerForm.UNREAD,
        prompt_param="messages",
        summary="Count the tokens of a message (Anthropic)",
        required=("messages",),
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.TOKENIZE],
        parser=tokenize.parse,
        answer=AnswerForm.UNREAD,
        prompt_param="messages",
        summary="Tokens of a text (vLLM)",
    ),
    RouteSpec(
        facts=ROUTE_FACTS[Route.INPUT_TOKENS],
        parser=responses.parse_count,
        answer=AnswerForm.RENDERED,
        prompt_param="input",
        summary="Count the input tokens of a response (OpenAI)",
        required=("input",),
    ),
)
ROUTES: Final[Mapping[Route, RouteSpec]] = {row.name: row for row in _ROWS}
# By the raw path of a request.
ROUTES_BY_PATH: Final[Mapping[bytes, RouteSpec]] = {row.facts.path.encode(): row for row in _ROWS}
