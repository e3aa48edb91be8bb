"""The provider as a whole: its routes, its key, what it does not know, and the headers that tell of it."""

import hmac
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from loadtest.engine import fields
from loadtest.engine.answer import Answer
from loadtest.engine.chat_template import render_responses
from loadtest.engine.connection import Exchange
from loadtest.engine.engine import Engine
from loadtest.engine.errors import EngineError
from loadtest.engine.faults import FaultPlan
from loadtest.engine.tokens import split
from loadtest.engine.usage import Usage
from loadtest.provider.answers import (
    AnthropicMessage,
    OpenAiChat,
    OpenAiCompletion,
    OpenAiResponse,
    embeddings,
)
from loadtest.provider.options import ProviderOptions

# Named so that a test can search a caller's answer for it.
ORGANIZATION: Final = "org-of-the-operator"
_TOLD: Final = (
    b"openai-organization: %b\r\nanthropic-organization-id: %b\r\nx-request-id: req_of_the_provider\r\n"
    b"request-id: req_of_the_provider\r\nx-ratelimit-remaining-requests: 88776655443\r\n"
    b"openai-processing-ms: 12\r\nset-cookie: __cf_bm=of-the-provider\r\n"
) % (ORGANIZATION.encode(), ORGANIZATION.encode())
# What each route knows, as the providers' own SDKs have it.
_KNOWN: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "openai": {
        "/v1/chat/completions": frozenset({*ChatParams.__annotations__, "stream"}),
        "/v1/completions": frozenset({*CompletionParams.__annotations__, "stream"}),
        "/v1/responses": frozenset({*ResponseCreateParamsBase.__annotations__, "stream"}),
        "/v1/responses/input_tokens": frozenset(InputTokenCountParams.__annotations__),
        "/v1/embeddings": frozenset(EmbeddingCreateParams.__annotations__),
    },
    "anthropic": {
        "/v1/messages": frozenset({*MessageCreateParamsBase.__annotations__, "stream"}),
        "/v1/messages/count_tokens": frozenset(MessageCountTokensParams.__annotations__),
    },
}
_TYPES: Final = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip


class Provider(Engine):
    """Answers as OpenAI or Anthropic does: it has no counters, no aborts, and takes no request by our id."""

    thinks: ClassVar[bool] = True
    answers: ClassVar[Mapping[str, type[Answer]]] = {
        "chat": OpenAiChat,
        "completions": OpenAiCompletion,
        "responses": OpenAiResponse,
        "messages": AnthropicMessage,
    }

    def __init__(self, options: ProviderOptions) -> None:
        super().__init__(options)
        self._dialect = options.dialect
        self._known = _KNOWN[options.dialect]
        self._posts = {
            "/v1/messages/count_tokens": self._count_tokens,
            "/v1/embeddings": self._embed,
            "/v1/responses/input_tokens": self._count_input,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        if exchange.path.startswith("/sim/"):
            super().handle(exchange)
            return
        exchange.more_head = _TOLD
        path = exchange.path
        if not self._authorized(exchange):
            key = exchange.header("x-api-key") or exchange.header("authorization")
            self._refuse_as(exchange, 401, f"Incorrect API key provided: {key}.")
        elif self._dialect == "anthropic" and exchange.header("anthropic-version") is None:
            self._refuse_as(exchange, 400, "anthropic-version: header is required")
        elif exchange.method == "GET" and path in {"/v1/models", f"/v1/models/{self.options.model}"}:
            listed = {"id": self.options.model, "object": "model", "type": "model"}
            exchange.json(200, {"object": "list", "data": [listed]} if path == "/v1/models" else listed)
        elif exchange.method != "POST" or path not in self._known:
            self._refuse_as(exchange, 404, f"Invalid URL ({exchange.method} {path})")
        elif unknown := self._unknown(exchange):
            self._refuse_as(exchange, 400, f"Unrecognized request argument supplied: {unknown}")
        else:
            super().handle(exchange)

    def _unknown(self, exchange: Exchange) -> str:
        try:
            body = fields.parse(exchange.body)
        except EngineError:
            return "the body"
        return ", ".join(sorted(body.keys() - self._known[exchange.path]))

    def _authorized(self, exchange: Exchange) -> bool:
        key = self.options.api_key or ""
        name, said = (
            ("x-api-key", key) if self._dialect == "anthropic" else ("authorization", f"Bearer {key}")
        )
        return hmac.compare_digest((exchange.header(name) or "").encode(), said.encode())

    def _refuse(self, exchange: Exchange, plan: FaultPlan) -> None:
        assert plan.status is not None
        if plan.retry_after is not None:
            exchange.more_head += b"retry-after: %b\r\n" % plan.retry_after.encode()
        message = f"Rate limit or failure at {ORGANIZATION}, see https://platform.example.com/account/limits"
        self._refuse_as(exchange, plan.status, message)

    def _refuse_as(self, exchange: Exchange, status: int, message: str) -> None:
        error: dict[str, Any] = {"type": _TYPES.get(status, "api_error"), "message": message}
        if self._dialect == "anthropic":
            exchange.json(status, {"type": "error", "error": error, "request_id": "req_of_the_provider"})
        else:
            exchange.json(status, {"error": error | {"param": None, "code": None}})

    def _count_input(self, exchange: Exchange) -> None:
        count = len(split(render_responses(fields.parse(exchange.body))))
        exchange.json(200, {"object": "response.input_tokens", "input_tokens": count})

    def _embed(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        given = body.get("input")
        inputs = [given] if isinstance(given, str) else list(given or ())
        prompt = sum(len(split(text)) for text in inputs)
        exchange.json(200, embeddings(self.options.model, inputs, Usage(prompt, 0)))
