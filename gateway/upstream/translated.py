"""Meters of a provider's answers in the other dialect than its caller's: each translates what arrives, and
reads what it has translated as the caller gets it. Pure but for the time of an answer.
"""

import time

import orjson

from gateway.request import AnswerForm, ParsedRequest
from gateway.stream.meter import Meter
from gateway.stream.meter_choices import ChoicesMeter
from gateway.stream.meter_plain import PlainMeter
from gateway.stream.meter_provider import new_id
from gateway.stream.meter_typed import MessagesMeter
from gateway.translate import ChatStream, MessagesStream, chat_answer, message_answer


def translated_meter(parsed: ParsedRequest, tier: bytes | None) -> Meter:
    """A new meter for one attempt of a chat request at a provider of messages, or the reverse."""
    meter = _fresh(parsed, to_chat=parsed.route.answer is AnswerForm.CHAT)
    meter.tier = tier
    return meter


def _fresh(parsed: ParsedRequest, *, to_chat: bool) -> Meter:
    if not parsed.stream:
        return _Whole(parsed, to_chat)
    return _Chat(parsed) if to_chat else _Message(parsed)


class _Chat(ChoicesMeter):
    __slots__ = ("_stream",)

    def __init__(self, parsed: ParsedRequest) -> None:
        super().__init__(parsed.samples, parsed.prompts, parsed.max_output_tokens, parsed.wants_usage, False)
        self._stream = ChatStream(
            answer_id=new_id(AnswerForm.CHAT),
            model=parsed.model,
            created=int(time.time()),
            include_usage=True,
        )

    def feed(self, chunk: bytes) -> bytes:
        translated = self._stream.feed(chunk)
        self.told = self._stream.usage or None
        return super().feed(translated)


class _Message(MessagesMeter):
    __slots__ = ("_stream",)

    def __init__(self, parsed: ParsedRequest) -> None:
        super().__init__(parsed.max_output_tokens)
        self._stream = MessagesStream(answer_id=new_id(AnswerForm.MESSAGE), model=parsed.model)

    def feed(self, chunk: bytes) -> bytes:
        translated = self._stream.feed(chunk)
        self.told = self._stream.usage
        return super().feed(translated)


class _Whole(PlainMeter):
    __slots__ = ("_model", "_to_chat")

    def __init__(self, parsed: ParsedRequest, to_chat: bool) -> None:
        super().__init__(parsed.route.answer, parsed.samples, parsed.prompts, parsed.max_output_tokens)
        self._model = parsed.model
        self._to_chat = to_chat

    def close(self) -> bytes:
        said = b"".join(self._pieces)
        if self._to_chat:
            answer = chat_answer(
                said, answer_id=new_id(AnswerForm.CHAT), model=self._model, created=int(time.time())
            )
        else:
            answer = message_answer(said, answer_id=new_id(AnswerForm.MESSAGE), model=self._model)
        self.told = orjson.loads(said).get("usage")
        self._pieces = [answer]
        return super().close()
