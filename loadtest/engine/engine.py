"""The engine as a whole: its routes, its key, and what it remembers of each request."""

import hmac
import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from loadtest.engine import fields, metrics, pooling
from loadtest.engine.answer import Answer, Identity
from loadtest.engine.answer_chat import ChatAnswer
from loadtest.engine.answer_completions import CompletionAnswer
from loadtest.engine.answer_messages import MessagesAnswer
from loadtest.engine.answer_responses import ResponsesAnswer
from loadtest.engine.chat_template import render_chat, render_messages, render_responses
from loadtest.engine.connection import Exchange
from loadtest.engine.control import Control
from loadtest.engine.errors import BadRequest, EngineError, Invalid
from loadtest.engine.fault_answers import refuse_with, send_garbage
from loadtest.engine.faults import FaultBook, FaultPlan
from loadtest.engine.job import Job, check_model, read_job, require_model
from loadtest.engine.options import EngineOptions
from loadtest.engine.prefix_cache import PrefixCache
from loadtest.engine.request_counts import PATH as COUNTS_PATH
from loadtest.engine.request_counts import RequestBook
from loadtest.engine.scheduler import Scheduler
from loadtest.engine.speech import offered_tools
from loadtest.engine.thinking import refuse_thinking, wants_thinking
from loadtest.engine.tokens import detokenize, split, token_id
from loadtest.engine.truth import TruthBook

VERSION = "0.32.0"
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_GENERATE = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}


# The beginning of an engine's own ids for the prompts of a request, where it has one for each.
_ID_OF_PROMPTS = {"completions": "cmpl", "embeddings": "embd", "score": "score", "rerank": "score"}


class Engine:
    """Handles each exchange; everything happens on one event loop. `answers`: by route. `thinks`: it takes a
    budget for thinking.
    """

    thinks: ClassVar[bool] = False
    answers: ClassVar[Mapping[str, type[Answer]]] = {
        "chat": ChatAnswer,
        "completions": CompletionAnswer,
        "responses": ResponsesAnswer,
        "messages": MessagesAnswer,
        **pooling.ANSWERS,
    }

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.started_s = time.time()
        self._book = RequestBook(options)
        self.scheduler = Scheduler(options, self._book)
        self._cache = PrefixCache(options.block_tokens, options.cache_blocks_max)
        self._faults = FaultBook()
        self._truths = TruthBook()
        self._received: deque[dict[str, Any]] = deque(maxlen=256)
        self._control = Control(self._faults, self._truths, self._received, self._cache)
        self._worked = pooling.PATHS if options.pooling else _GENERATE
        self._posts = {
            "/v1/messages/count_tokens": self._count_tokens,
            "/v1/responses/render": self._render_responses,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        if not options.pooling:  # vLLM has it only where it generates
            self._posts["/inference/v1/abort_requests"] = self._abort
        self._gets = {
            "/health": lambda exchange: exchange.respond(200, b""),
            "/load": lambda exchange: exchange.json(
                200, {"server_load": self.scheduler.running + self.scheduler.waiting}
            ),
            "/version": lambda exchange: exchange.json(200, {"version": VERSION}),
            "/v1/models": self._models,
            "/metrics": self._metrics,
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.path
        if path.startswith("/sim/"):
            self._control.handle(exchange)
            return
        if path == COUNTS_PATH and self.options.request_counts:
            self._book.handle(exchange)
            return
        if self._faults.take_refusal(self._worked.get(path, path)):
            exchange.cut(reset=True)
            return
        if path.startswith(_GUARDED) and not self._authorized(exchange):
            exchange.json(401, {"error": "Unauthorized"})
            return
        try:
            self._route(exchange, path)
        except EngineError as refused:
            anthropic = path in ("/v1/messages", "/v1/messages/count_tokens")
            exchange.json(refused.status, refused.body(anthropic=anthropic))

    def _route(self, exchange: Exchange, path: str) -> None:
        if exchange.method == "POST" and path in self._worked:
            self._work(exchange, self._worked[path])
        elif exchange.method == "POST" and path in self._posts:
            self._remember(exchange)
            self._posts[path](exchange)
        elif exchange.method == "GET" and path in self._gets:
            self._gets[path](exchange)
        elif path in self._worked or path in self._posts or path in self._gets:
            allow = b"GET" if path in self._gets else b"POST"
            exchange.respond(
                405, b'{"detail":"Method Not Allowed"}', b"application/json", b"allow: %b\r\n" % allow
            )
        else:
            exchange.json(404, {"detail": "Not Found"})

    def _authorized(self, exchange: Exchange) -> bool:
        if self.options.api_key is None:
            return True
        scheme, _, key = (exchange.header("authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), self.options.api_key.encode())

    def _remember(self, exchange: Exchange) -> None:
        self._received.append(
            {
                "method": exchange.method,
                "path": exchange.path,
                "headers": exchange.headers,
                "body": exchange.body,
            }
        )

    # Requests that run in the engine

    def _work(self, exchange: Exchange, route: str) -> None:
        self._remember(exchange)
        caller_id = exchange.header("x-request-id") or uuid.uuid4().hex[:16]
        if self._book.is_closed(caller_id):
            exchange.json(410, {"error": {"message": "This request was closed.", "code": 410}})
            return
        read = pooling.read_pooling_job if self.options.pooling else read_job
        job = read(route, fields.parse(exchange.body), self.options)
        marked = "\n".join(prompt.text for prompt in job.prompts if "[[fault:" in prompt.text)
        plan = self._faults.plan(job.model, route, marked, offered_tools(job.body))
        if plan.refuse:
            exchange.cut(reset=True)
        elif plan.hang is not None:
            self._book.hangs(caller_id, exchange)
            if plan.hang == "headers":
                exchange.start_stream()
        elif plan.status is not None:
            self._refuse(exchange, plan)
        elif plan.before_engine:
            assert plan.garbage is not None
            send_garbage(exchange, plan.garbage)
        elif wants_thinking(job.body) and not self.thinks:
            refuse_thinking(job, exchange)
        else:
            request_id, identity = self._identify(job, exchange)
            truth = self._truths.open(request_id, route, identity.answer_id, job.model)
            answer = self.answers[route](
                job=job,
                identity=identity,
                exchange=exchange,
                truth=truth,
                plan=plan,
                scheduler=self.scheduler,
                cache=self._cache,
            )
            self._book.begun(caller_id, answer)
            answer.start()

    def _refuse(self, exchange: Exchange, plan: FaultPlan) -> None:
        assert plan.status is not None
        refuse_with(exchange, plan.status, plan.retry_after)

    @staticmethod
    def _identify(job: Job, exchange: Exchange) -> tuple[str, Identity]:
        """The request's own id, and the ids that vLLM makes of it."""
        if job.route == "responses":
            request_id = str(job.body.get("request_id") or f"resp_{uuid.uuid4().hex[:16]}")
            return request_id, Identity(request_id, (f"{request_id}_0",))
        request_id = exchange.header("x-request-id") or uuid.uuid4().hex[:16]
        if prefix := _ID_OF_PROMPTS.get(job.route):
            answer_id = f"{prefix}-{request_id}"
            return request_id, Identity(
                answer_id, tuple(f"{answer_id}-{at}" for at in range(len(job.prompts)))
            )
        return request_id, Identity(f"chatcmpl-{request_id}", (f"chatcmpl-{request_id}",))

    def _abort(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        if "request_ids" not in body:
            missing = Invalid("missing", "", "", None)
            missing.message, missing.param = "Missing 'request_ids' in request body", None
            raise missing
        self.scheduler.abort(fields.strings(body, "request_ids"))
        exchange.respond(200, b"")

    # Tokens

    def _count_tokens(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        require_model(body, self.options)
        count = len(split(render_messages(body)))
        exchange.json(200, {"input_tokens": count, "context_management": {"original_input_tokens": count}})

    def _render_responses(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        check_model(body, self.options)
        token_ids = [token_id(piece) for piece in split(render_responses(body))]
        exchange.json(
            200, {"request_id": f"resp_{uuid.uuid4().hex}", "token_ids": token_ids, "features": None}
        )

    def _tokenize(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        check_model(body, self.options)
        if "messages" in body:
            text, continued = render_chat(body)
            text += continued
        elif isinstance(body.get("prompt"), str):
            text = body["prompt"]
        else:
            raise Invalid("missing", "body.prompt", "Field required", body)
        pieces = split(text)
        shown = pieces if body.get("return_token_strs") else None
        tokens = [token_id(piece) for piece in pieces]
        exchange.json(
            200,
            {
                "count": len(tokens),
                "max_model_len": self.options.context_tokens,
                "tokens": tokens,
                "token_strs": shown,
            },
        )

    def _detokenize(self, exchange: Exchange) -> None:
        body = fields.parse(exchange.body)
        tokens = fields.required_list(body, "tokens")
        if not all(isinstance(number, int) for number in tokens):
            raise BadRequest("tokens must be integers")
        exchange.json(200, {"prompt": detokenize(tokens)})

    # About the engine

    def _models(self, exchange: Exchange) -> None:
        now = int(time.time())
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}", "object": "model_permission", "created": now,
            "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True,
            "allow_search_indices": False, "allow_view": True, "allow_fine_tuning": False,
            "organization": "*", "group": None, "is_blocking": False,
        }  # fmt: skip
        model = {
            "id": self.options.model, "object": "model", "created": now, "owned_by": "vllm",
            "root": f"/models/{self.options.model}", "parent": None,
            "max_model_len": self.options.context_tokens, "permission": [permission],
        }  # fmt: skip
        exchange.json(200, {"object": "list", "data": [model]})

    def _metrics(self, exchange: Exchange) -> None:
        text = metrics.render(self.options, self.scheduler, self.started_s)
        exchange.respond(200, text, b"text/plain; version=1.0.0; charset=utf-8")
