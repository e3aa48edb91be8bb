"""The meter of answers in one piece: one JSON object with its usage. It buffers the answer, so that a broken
one can still become an error.
"""

from collections.abc import Callable
from typing import Any, Final

import orjson

from gateway.request import AnswerForm
from gateway.stream.answer_form import answer_written
from gateway.stream.meter import (
    USAGE_MISSING,
    Produced,
    ProtocolViolation,
    cached_count,
    clamped,
    token_count,
    usage_anomaly,
)
from gateway.stream.meter_typed import messages_usage, responses_usage

ANSWER_BYTES_MAX = 32 * 1024 * 1024


def _choices_usage(usage: dict[str, Any]) -> tuple[int, int, int]:
    prompt, output = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
    return prompt, cached_count(usage, "prompt_tokens_details"), output


def _prompt_usage(usage: dict[str, Any]) -> tuple[int, int, int]:
    return token_count(usage, "prompt_tokens"), 0, 0


# Prompt, cached and output of a usage object. Forms that are not here have none.
_USAGE_OF: Final[dict[AnswerForm, Callable[[Any], tuple[int, int, int]]]] = {
    AnswerForm.CHAT: _choices_usage,
    AnswerForm.COMPLETION: _choices_usage,
    AnswerForm.RESPONSE: responses_usage,
    AnswerForm.MESSAGE: messages_usage,
    AnswerForm.POOLED: _prompt_usage,
}


class PlainMeter:
    """Implements `gateway.stream.meter.Meter`. `feed` passes nothing on; `close` decodes and returns the
    answer to send.
    """

    __slots__ = (
        "_form", "_output_max", "_pieces", "_prompts", "_samples", "_size", "_total", "aborted", "anomaly",
        "exact", "failed", "failure", "finished", "model", "tier", "told",
    )  # fmt: skip

    def __init__(self, form: AnswerForm, samples: int, prompts: int, output_tokens_max: int | None) -> None:
        self._form = form
        self._samples = samples
        self._prompts = prompts
        self._output_max = None if output_tokens_max is None else output_tokens_max * samples
        self._pieces: list[bytes] = []
        self._size = 0
        self._total: Produced | None = None
        self.finished = self.failed = self.aborted = self.exact = False
        self.failure = b""
        self.anomaly: str | None = None
        self.told: dict[str, Any] | None = None
        self.model: str | None = None
        self.tier: bytes | None = None

    def feed(self, chunk: bytes) -> bytes:
        self._size += len(chunk)
        if self._size > ANSWER_BYTES_MAX:
            raise ProtocolViolation("answer longer than 32 MiB")
        self._pieces.append(chunk)
        return b""

    def produced(self) -> Produced:
        return Produced() if self._total is None else self._total

    def output_tokens(self) -> int:
        return 0 if self._total is None else self._total.output

    def counted(self) -> bool:
        return False

    def distrust(self) -> None:
        """The engine was told to stop. Its usage then has every prompt of a pooled answer, read or not."""
        if self._form is AnswerForm.POOLED:
            self._total, self.exact = None, False

    def close(self) -> bytes:
        """The whole answer, decoded for its usage, as the caller is to have it. Raises ProtocolViolation
        when it is not a JSON object.
        """
        answer = b"".join(self._pieces)
        try:
            decoded = orjson.loads(answer)
        except orjson.JSONDecodeError as exc:
            raise ProtocolViolation("answer is not JSON") from exc
        if not isinstance(decoded, dict):
            raise ProtocolViolation("answer is not an object")
        usage_of = _USAGE_OF.get(self._form)
        if usage_of is None:
            self._total = Produced()
            self.exact = self.finished = True
            return _count_told(decoded) if self._form is AnswerForm.RENDERED else answer
        if "error" in decoded and decoded.get("error") is not None:
            self.failed, self.failure = True, answer
            return answer
        usage = decoded.get("usage")
        if usage is None:
            self.anomaly = USAGE_MISSING
        else:
            self._read(decoded, usage_of, usage)
        self.finished = True
        return answer_written(answer, decoded, self._form, self.model, self.tier)

    def _read(
        self, decoded: dict[str, Any], usage_of: Callable[[Any], tuple[int, int, int]], usage: Any
    ) -> None:
        try:
            prompt, cached, output = usage_of(usage)
        except (ValueError, AttributeError):
            self.anomaly = "usage_malformed"
            return
        self.anomaly = usage_anomaly(prompt, cached, output, self._output_max)
        choices = decoded.get("choices")
        if isinstance(choices, list):
            reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
            self.aborted = "abort" in reasons
        self.exact = self.anomaly is None
        if self.anomaly is not None:
            prompt, cached, output = clamped(prompt, cached, output, self._output_max)
        if output == 0 and usage_of is not _prompt_usage:
            self._total = Produced()
        else:
            self._total = Produced(prompt, cached, output, prompt * (self._samples // max(1, self._prompts)))
        if self._form is AnswerForm.POOLED and _has_empty(decoded.get("data")):
            self.aborted = True
            self.distrust()


def _has_empty(data: Any) -> bool:
    """Whether an embedding is empty: its prompt was aborted."""
    return isinstance(data, list) and any(
        isinstance(one, dict) and one.get("embedding") in ("", []) for one in data
    )


def _count_told(rendered: dict[str, Any]) -> bytes:
    """The answer of `/v1/responses/input_tokens`, made from an engine's `/v1/responses/render`. Raises
    ProtocolViolation.
    """
    token_ids = rendered.get("token_ids")
    if type(token_ids) is not list:
        raise ProtocolViolation("rendered without tokens")
    return orjson.dumps({"object": "response.input_tokens", "input_tokens": len(token_ids)})
