"""What the official SDKs read of an answer: their decoders of events, their accumulators, their types."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import anthropic
import httpx2
import openai
from anthropic.lib.streaming._messages import accumulate_event, build_events
from anthropic.types import Message, RawMessageStreamEvent
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

OPENAI = openai.OpenAI(base_url="http://gateway/v1", api_key="k")
ANTHROPIC = anthropic.Anthropic(base_url="http://gateway", api_key="k")
_EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def _response(stream: bytes) -> httpx2.Response:
    return httpx2.Response(200, content=stream, request=httpx2.Request("POST", "http://gateway/"))


def chunks_of(stream: bytes) -> list[ChatCompletionChunk]:
    """Raises openai.APIError for an error in the stream."""
    return list(openai.Stream(cast_to=ChatCompletionChunk, response=_response(stream), client=OPENAI))


def completion_of(stream: bytes) -> ChatCompletion:
    """The SDK's snapshot: its final completion is an exception for answers that were cut or filtered."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    last: Any = None
    for chunk in chunks_of(stream):
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        list(state.handle_chunk(chunk))
        last = chunk.choices[0] if chunk.choices else last
    read: Any = state.current_completion_snapshot
    # Which stop string ended an answer is no member of OpenAI's, so its SDK does not keep it.
    read.choices[0].stop_reason = getattr(last, "stop_reason", None)
    return cast(ChatCompletion, read)


def events_of(stream: bytes) -> Iterator[Any]:
    """Raises anthropic.APIStatusError for an error in the stream."""
    kind: Any = RawMessageStreamEvent
    return iter(anthropic.Stream(cast_to=kind, response=_response(stream), client=ANTHROPIC))


def message_of(stream: bytes) -> Message:
    """Also checks that the events come in the order that Anthropic documents."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    order = Order()
    for event in events_of(stream):
        _EVENT.validate_python(event.model_dump(warnings=False))
        order.take(event.type, getattr(event, "index", None))
        message = accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
        build_events(event=event, message_snapshot=message)
    assert order.ended
    return Message.model_validate(message.model_dump(warnings=False))


class Order:
    """message_start, then blocks one after another, then message_delta and message_stop."""

    def __init__(self) -> None:
        self.begun = self.told = self.ended = False
        self.open: int | None = None
        self.blocks = 0

    def take(self, kind: str, index: int | None) -> None:
        assert not self.ended
        allowed: dict[str, Callable[[], bool]] = {
            "message_start": lambda: not self.begun,
            "content_block_start": lambda: self.begun and self.open is None and index == self.blocks,
            "content_block_delta": lambda: self.open is not None and index == self.open,
            "content_block_stop": lambda: self.open is not None and index == self.open,
            "message_delta": lambda: self.begun and self.open is None and not self.told,
            "message_stop": lambda: self.told,
        }
        assert allowed[kind](), (kind, index)
        if kind == "message_start":
            self.begun = True
        elif kind == "content_block_start":
            self.open, self.blocks = index, self.blocks + 1
        elif kind == "content_block_stop":
            self.open = None
        self.told = self.told or kind == "message_delta"
        self.ended = kind == "message_stop"
