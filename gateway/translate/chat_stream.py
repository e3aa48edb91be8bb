"""A messages stream as a chat stream, piece by piece."""

from typing import Any, Final

from msgspec.json import Decoder, encode

from gateway.stream.events import EventSplitter
from gateway.stream.meter import ProtocolViolation
from gateway.translate.answers import chat_usage, finish
from gateway.translate.provider_shapes import Block, MessageEvent, data_of, read

_EVENT: Final = Decoder(MessageEvent)


class ChatStream:
    """`feed` takes a provider's bytes in pieces of any size and returns complete events for the caller. It
    raises ProtocolViolation. `created`: seconds since 1970.

    Pings are dropped. So are other types of events and blocks, of which there may be new ones: no request
    asks for them.
    """

    def __init__(self, *, answer_id: str, model: str, created: int, include_usage: bool) -> None:
        named = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = b'data: %b,"choices":[' % encode(named)[:-1]
        self._include_usage = include_usage
        self._splitter = EventSplitter()
        self._calls: dict[int, int] = {}  # the index of a call, by the index of its block
        self._unsaid: dict[int, bytes] = {}  # arguments of calls of which no delta has come
        self.usage: dict[str, Any] = {}  # as the provider has told it so far
        self._ending: Block | None = None  # what `message_delta` said
        self._ended = False

    def feed(self, chunk: bytes) -> bytes:
        return b"".join([self._read(data_of(event)) for event in self._splitter.split(chunk)])

    def _read(self, data: bytes) -> bytes:
        if not data or self._ended:
            return b""
        event = read(_EVENT, data)
        kind, block = event.type, event.content_block
        if kind == "content_block_delta" and event.delta is not None:
            return self._say(event.index, event.delta)
        if kind == "content_block_start" and block is not None:
            if block.type == "tool_use":
                return self._call(event.index, block)
            return self._say(event.index, block) if block.type in ("text", "thinking") else b""
        if kind == "content_block_stop":
            return self._end_block(event.index)
        if kind == "message_start" and event.message is not None:
            self._add_usage(event.message.usage)
            return self._chunk(b'"role":"assistant"')
        if kind == "message_delta":
            self._ending = event.delta
            self._add_usage(event.usage)
        elif kind == "message_stop":
            return self._end()
        elif kind == "error":
            self._ended = True
            return b"data: %b\n\n" % data
        return b""

    def _say(self, index: int, said: Block) -> bytes:
        if said.text:
            return self._chunk(b'"content":%b' % encode(said.text))
        if said.thinking:
            return self._chunk(b'"reasoning_content":%b' % encode(said.thinking))
        if said.partial_json and index in self._calls:
            self._unsaid.pop(index, None)
            return self._arguments(index, said.partial_json)
        return b""

    def _call(self, index: int, block: Block) -> bytes:
        self._unsaid[index] = bytes(block.input) or b"{}"
        self._calls[index] = len(self._calls)
        return self._chunk(
            b'"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]'
            % (self._calls[index], encode(block.id), encode(block.name))
        )

    def _arguments(self, index: int, text: str) -> bytes:
        said = (self._calls[index], encode(text))
        return self._chunk(b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % said)

    def _end_block(self, index: int) -> bytes:
        """A call without arguments has no delta. In chat its arguments are an empty object."""
        unsaid = self._unsaid.pop(index, None)
        return b"" if unsaid is None else self._arguments(index, unsaid.decode())

    def _end(self) -> bytes:
        if self._ending is None:
            raise ProtocolViolation("message_stop without message_delta")
        self._ended = True
        refusal, usage = self._ending.explanation, chat_usage(self.usage)
        said = b"" if refusal is None else self._chunk(b'"refusal":%b' % encode(refusal))
        said += b'%b{"index":0,"delta":{},%b]}\n\n' % (self._head, encode(finish(self._ending))[1:])
        if self._include_usage and usage is not None:
            said += b'%b],"usage":%b}\n\n' % (self._head, encode(usage))
        return said + b"data: [DONE]\n\n"

    def _chunk(self, delta: bytes) -> bytes:
        return b'%b{"index":0,"delta":{%b},"finish_reason":null}]}\n\n' % (self._head, delta)

    def _add_usage(self, usage: dict[str, Any] | None) -> None:
        """Figures are cumulative; those that an event leaves out stand."""
        self.usage |= {name: figure for name, figure in (usage or {}).items() if figure is not None}
