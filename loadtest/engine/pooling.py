"""An engine that pools, as vLLM with `--runner pooling`: embeddings, scores and rankings, each made of the
prompts alone. A score is the similarity of two embeddings.
"""

import base64
import math
import struct
from typing import Any, Final

from loadtest.engine import fields
from loadtest.engine.answer import Answer
from loadtest.engine.errors import BadRequest, Invalid, NotFound
from loadtest.engine.fields import Body
from loadtest.engine.job import Job, Prompt, text_prompt, token_prompt
from loadtest.engine.options import EngineOptions
from loadtest.engine.sequence import Sequence
from loadtest.engine.usage import Usage, lie

PATHS: Final = {"/v1/embeddings": "embeddings", "/v1/score": "score", "/v1/rerank": "rerank"}
_DIMENSIONS: Final = 8
_NO_MATRYOSHKA: Final = (
    "Model {model!r} does not support Matryoshka embeddings; dimensions must be unset (received "
    "dimensions={dimensions})."
)


def read_pooling_job(route: str, body: Body, options: EngineOptions) -> Job:
    """Check a body as vLLM would; raises EngineError."""
    model = body.get("model") or options.model
    if model != options.model:
        raise NotFound(f"The model `{model}` does not exist.")
    if route == "embeddings":
        prompts = _inputs(body)
        dimensions = fields.integer(body, "dimensions")
        if dimensions is not None:
            raise BadRequest(_NO_MATRYOSHKA.format(model=model, dimensions=dimensions))
    else:
        prompts = tuple(text_prompt(text) for text in _texts(route, body))
    for prompt in prompts:
        _check_length(prompt, options.context_tokens)
    return Job(
        route=route, model=model, body=body, stream=False, include_usage=False, continuous_usage=False,
        prompts=prompts, samples=1, output_asked=None, output_max=0, output_min=0, ignore_eos=False, stops=(),
        priority=fields.integer(body, "priority", 0) or 0, cache_salt=str(body.get("cache_salt") or ""),
        echo=False, logprobs=None,
    )  # fmt: skip


def _inputs(body: Body) -> tuple[Prompt, ...]:
    given: Any = body.get("input")
    if given is None:
        raise Invalid("missing", "body.input", "Field required", body)
    if given == []:
        raise BadRequest("You must pass at least one prompt")
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    if not all(given):
        raise BadRequest("The decoder prompt cannot be empty")
    return tuple(text_prompt(item) if isinstance(item, str) else token_prompt(item) for item in given)


def _texts(route: str, body: Body) -> list[str]:
    queries, documents = _queries(route, body), _documents(route, body)
    if not documents:
        raise BadRequest("At least one text_pair element must be given")
    if len(queries) not in {1, len(documents)}:
        raise BadRequest("Input lengths must be either 1:1, 1:N or N:N")
    return [*queries, *documents]


def _queries(route: str, body: Body) -> list[str]:
    return fields.strings(body, "query" if route == "rerank" else "text_1")


def _documents(route: str, body: Body) -> list[str]:
    return fields.strings(body, "documents" if route == "rerank" else "text_2")


def _check_length(prompt: Prompt, context_tokens: int) -> None:
    """A text is counted up to the first token too many."""
    if len(prompt.tokens) > context_tokens:
        is_text = isinstance(prompt.tokens[0], str)
        count = context_tokens + 1 if is_text else len(prompt.tokens)
        least = "at least " if is_text else ""
        raise BadRequest(
            f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
            f"{least}{count} input tokens, which exceeds this limit even without any output tokens. Please "
            f"reduce the length of the input prompt. (parameter=input_tokens, value={count})",
            "input_tokens",
        )


class PoolingAnswer(Answer):
    """What its routes have in common: nothing is streamed, and usage is the prompts'."""

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        return []

    def _on_end(self) -> list[bytes]:
        return []

    def usage(self, *, final: bool = True) -> Usage | None:
        """Of all prompts, whatever became of them: vLLM counts what it was given."""
        prompt = sum(len(prompt.tokens) for prompt in self.job.prompts)
        return lie(Usage(prompt, 0), self._plan.usage, final=final)

    def _vector(self, sequence: Sequence) -> list[float]:
        """Empty for a prompt that was aborted, as vLLM's is."""
        if sequence.finish == "abort":
            return []
        raw = [math.sin(sequence.seed % 9973 * (at + 1)) for at in range(_DIMENSIONS)]
        length = math.sqrt(sum(value * value for value in raw))
        return [value / length for value in raw]

    def _scores(self) -> list[float]:
        vectors = [self._vector(sequence) for sequence in self.sequences]
        count = len(_queries(self.job.route, self.job.body))
        queries, documents = vectors[:count], vectors[count:]
        if count == 1:
            queries *= len(documents)
        return [
            sum(a * b for a, b in zip(*pair, strict=False)) for pair in zip(queries, documents, strict=True)
        ]

    def _listed(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        usage = self.usage()
        return {
            "id": self.id, "object": "list", "created": self.created, "model": self.job.model, "data": items,
            "usage": None if usage is None else usage.pooled(),
        }  # fmt: skip


class EmbeddingAnswer(PoolingAnswer):
    """/v1/embeddings, as numbers or in base64."""

    def _whole(self) -> dict[str, Any]:
        as_text = self.job.body.get("encoding_format") == "base64"
        vectors = [self._vector(sequence) for sequence in self.sequences]
        return self._listed(
            [
                {
                    "index": index,
                    "object": "embedding",
                    "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
                    if as_text
                    else vector,
                }
                for index, vector in enumerate(vectors)
            ]
        )


class ScoreAnswer(PoolingAnswer):
    """/v1/score."""

    def _whole(self) -> dict[str, Any]:
        scores = self._scores()
        return self._listed(
            [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        )


class RerankAnswer(PoolingAnswer):
    """/v1/rerank: the documents, the most similar first."""

    def _whole(self) -> dict[str, Any]:
        documents = _documents("rerank", self.job.body)
        results = [
            {"index": index, "document": {"text": documents[index], "multi_modal": None},
            "relevance_score": score}
            for index, score in enumerate(self._scores())
        ]  # fmt: skip
        results.sort(key=lambda result: -float(str(result["relevance_score"])))
        usage = self.usage()
        counted = None if usage is None else {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
        top = fields.integer(self.job.body, "top_n", 0) or len(results)
        return {"id": self.id, "model": self.job.model, "usage": counted, "results": results[:top]}


ANSWERS: Final[dict[str, type[Answer]]] = {
    "embeddings": EmbeddingAnswer, "score": ScoreAnswer, "rerank": RerankAnswer,
}  # fmt: skip
