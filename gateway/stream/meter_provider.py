"""The meters of providers' answers. Pure.

They are those of engines, with two differences. An answer gets an id of ours, because the provider's names
its own request; what the provider says of its machines is left out. And in Anthropic's dialect the figures
are spread: the prompt's may come only at the beginning, the output's at the end.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from secrets import token_hex
from typing import Any, Final

import orjson

from gateway.request import AnswerForm, ParsedRequest
from gateway.stream.meter import Meter, optional_count
from gateway.stream.meter_choices import ChoicesMeter
from gateway.stream.meter_plain import PlainMeter
from gateway.stream.meter_typed import MessagesMeter, ResponsesMeter

_ID_PREFIXES: Final = {
    AnswerForm.CHAT: "chatcmpl-",
    AnswerForm.COMPLETION: "cmpl-",
    AnswerForm.RESPONSE: "resp_",
    AnswerForm.MESSAGE: "msg_",
}
# Members that tell a provider's own affairs.
_INSIDE: Final = ("system_fingerprint", "obfuscation", "provider", "x_groq")
# Of a usage object that is kept, and of each object in it. A provider's has about a dozen.
_FIGURES_MAX: Final = 32
_FIGURE_MAX: Final = 2**63 - 1
_FIGURE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def provider_meter(parsed: ParsedRequest, tier: bytes | None = None) -> Meter:
    """A new meter for one attempt of this request at a provider. `tier`: the class that serves it, if that is
    known already.
    """
    meter = _fresh(parsed)
    meter.model, meter.tier = parsed.model, tier
    return meter


def _fresh(parsed: ParsedRequest) -> Meter:
    form, output_max = parsed.route.answer, parsed.max_output_tokens
    if form is AnswerForm.RENDERED:
        form = AnswerForm.UNREAD  # a provider tells the number of tokens and not the tokens
    if not parsed.stream:
        return _Plain(form, parsed.samples, parsed.prompts, output_max)
    if form is AnswerForm.MESSAGE:
        return _Messages(output_max)
    if form is AnswerForm.RESPONSE:
        return _Responses(output_max)
    return _Choices(parsed, form)


def _own(answer: dict[str, Any], answer_id: str) -> dict[str, Any]:
    """With an id of ours where it has one. `answer` is modified."""
    if "id" in answer:
        answer["id"] = answer_id
    for name in _INSIDE:
        answer.pop(name, None)
    return answer


def new_id(form: AnswerForm) -> str:
    """An id of ours for an answer of this form."""
    return _ID_PREFIXES.get(form, "") + token_hex(16)


def object_or_none(value: Any) -> dict[str, Any] | None:
    """A member that is an object."""
    return value if isinstance(value, dict) else None


def cache_written(told: Mapping[str, Any]) -> int:
    """How many tokens of the prompt a usage object says were written into the provider's cache."""
    try:
        for details in ("prompt_tokens_details", "input_tokens_details"):
            if isinstance(told.get(details), dict):
                return max(0, optional_count(told[details], "cache_write_tokens"))
        return max(0, optional_count(told, "cache_creation_input_tokens"))
    except ValueError:
        return 0


def kept_usage(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The figures of a usage object, which are kept beside our own. No text is: it could be anybody's."""
    if told is None:
        return None
    kept: dict[str, Any] = {name: figure for name, figure in _figures(told) if type(figure) is int}
    for name, inner in _figures(told):
        if type(inner) is dict:
            kept[name] = {part: figure for part, figure in _figures(inner) if type(figure) is int}
    return kept


def _figures(holder: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Its first members that have the name of a figure, and no value that cannot be kept."""
    for name, figure in islice(holder.items(), _FIGURES_MAX):
        if _FIGURE_NAME.fullmatch(name) and (type(figure) is not int or abs(figure) <= _FIGURE_MAX):
            yield name, figure


class _Plain(PlainMeter):
    __slots__ = ("_id",)

    def __init__(self, form: AnswerForm, samples: int, prompts: int, output_tokens_max: int | None) -> None:
        super().__init__(form, samples, prompts, output_tokens_max)
        self._id = new_id(form)

    def close(self) -> bytes:
        answer = super().close()
        if self.failed:
            return answer
        decoded = orjson.loads(answer)
        self.told = object_or_none(decoded.get("usage"))
        return orjson.dumps(_own(decoded, self._id))


class _Choices(ChoicesMeter):
    """A provider's chunks are decoded one by one, because each names its request. Usage is of the whole
    request, and some providers put it on the chunk that finishes the last sample.
    """

    __slots__ = ("_id", "_usage")

    def __init__(self, parsed: ParsedRequest, form: AnswerForm) -> None:
        super().__init__(parsed.samples, parsed.prompts, parsed.max_output_tokens, parsed.wants_usage, False)
        self._id = new_id(form)
        self._usage: dict[str, Any] | None = None

    def _learn(self, event: bytes) -> None:
        """Each has the provider's id, and may have more that is inside."""

    def _read_choice(self, choice: Any, usage: Any) -> None:
        super()._read_choice(choice, None)
        if isinstance(usage, dict) and self._finished_samples == self._samples:
            self._read_total(usage)
            self._usage = usage

    def _read_total(self, usage: Any) -> None:
        self.told = object_or_none(usage) or self.told
        super()._read_total(usage)

    def _written_decoded(self, chunk: dict[str, Any], event: bytes | None) -> bytes:
        if self._usage is not None and self._wants_usage:
            chunk["usage"] = self._usage
        self._usage = None
        return super()._written_decoded(_own(chunk, self._id), None)


class _Messages(MessagesMeter):
    __slots__ = ("_id", "_start_usage")

    def __init__(self, output_tokens_max: int | None) -> None:
        super().__init__(output_tokens_max)
        self._id = new_id(AnswerForm.MESSAGE)
        self._start_usage: dict[str, Any] = {}

    def _read_start(self, message: dict[str, Any]) -> None:
        _own(message, self._id)
        usage = message.get("usage")
        if not isinstance(usage, dict):
            return
        self._start_usage = self.told = usage
        try:
            parts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            prompt = sum(optional_count(usage, name) for name in parts)
        except ValueError:
            return  # the last figures will say what is wrong
        self._prompt = max(0, prompt)

    def _read_usage(self, usage: dict[str, Any]) -> None:
        said = {name: figure for name, figure in usage.items() if figure is not None}
        self.told = self._start_usage | said
        super()._read_usage(self.told)


class _Responses(ResponsesMeter):
    __slots__ = ("_id",)

    def __init__(self, output_tokens_max: int | None) -> None:
        super().__init__(output_tokens_max)
        self._id = new_id(AnswerForm.RESPONSE)

    def _read_usage(self, usage: Any) -> None:
        self.told = object_or_none(usage)
        super()._read_usage(usage)

    def _written(self, event: dict[str, Any], response: dict[str, Any]) -> bytes:
        return super()._written(event, _own(response, self._id))
