"""A chat stream as a messages stream, piece by piece.

The blocks of a message come one after another, but calls in chat may come interleaved. So one block is open
at a time. A call ends when its arguments are a complete object; until then what belongs to other blocks
waits.
"""

from typing import Any, Final

from msgspec.json import Decoder, encode

from gateway.stream.events import EventSplitter
from gateway.stream.meter import InvalidToolCall, ProtocolViolation
from gateway.translate.answers import is_object, message_usage, stop, tool_use
from gateway.translate.provider_shapes import Choice, Completion, data_of, read

CALLS_MAX = 128
HELD_CHARS_MAX = 8 * 1024 * 1024

_CHUNK: Final = Decoder(Completion)
# The keys of blocks. The key of a call is its index.
_TEXT, _THINKING = -1, -2
_STARTS: Final = {
    _TEXT: {"type": "text", "text": ""},
    _THINKING: {"type": "thinking", "thinking": "", "signature": ""},
}
# The type of a block's deltas, and the member with the piece.
_DELTAS: Final = {_TEXT: ("text_delta", "text"), _THINKING: ("thinking_delta", "thinking")}
_ARGUMENTS: Final = ("input_json_delta", "partial_json")


class MessagesStream:
    """`feed` takes a provider's bytes in pieces of any size and returns complete events for the caller. It
    raises ProtocolViolation. Usage is told at the end, because no provider tells it before.
    """

    def __init__(self, *, answer_id: str, model: str) -> None:
        self._start: dict[str, Any] | None = {
            "id": answer_id, "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 0, "output_tokens": 0},
        }  # fmt: skip
        self._splitter = EventSplitter()
        self._index = 0  # of the open block, or the next one
        self._open: int | None = None
        self._arguments: list[str] = []  # of the open call
        self._waiting: dict[int, list[str]] = {}
        self._held_chars = 0
        self._calls: dict[int, dict[str, Any]] = {}  # their blocks, as they begin
        self._over: set[int] = set()  # calls whose block has ended
        self._finish: Choice | None = None
        self._refused = self._ended = False
        self.usage: dict[str, Any] | None = None  # as the provider told it

    def feed(self, chunk: bytes) -> bytes:
        out: list[bytes] = []
        for event in self._splitter.split(chunk):
            data = data_of(event)
            if self._ended:
                break
            if data == b"[DONE]":
                self._end(out)
            elif data:
                self._read(data, out)
        return b"".join(out)

    def _read(self, data: bytes, out: list[bytes]) -> None:
        chunk = read(_CHUNK, data)
        if chunk.error is not None:
            self._ended = True
            out.append(b"event: error\ndata: %b\n\n" % data)
            return
        if self._start is not None:
            out.append(_event(b"message_start", {"message": self._start}))
            self._start = None
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            said = choice.delta
            if thinking := said.reasoning_content or said.reasoning:
                self._say(_THINKING, thinking, out)
            if text := (said.content or "") + (said.refusal or ""):
                self._refused = self._refused or bool(said.refusal)
                self._say(_TEXT, text, out)
            for call in said.tool_calls or ():
                if call.index not in self._calls:
                    self._calls[call.index] = tool_use(call)
                    if len(self._calls) > CALLS_MAX or call.index < 0:
                        raise ProtocolViolation("too many tool calls")
                self._say(call.index, call.function.arguments or "", out)
            if choice.finish_reason is not None:
                self._finish = choice

    def _say(self, key: int, piece: str, out: list[bytes]) -> None:
        """Write the next piece of a block, or let it wait for the end of the open one."""
        if key == self._open:
            self._write(piece, out)
        elif key not in self._over:
            is_new = key not in self._waiting
            self._hold(piece)
            self._waiting.setdefault(key, []).append(piece)
            while is_new and self._waiting and self._may_end():
                self._open_next(out)
        elif piece and not piece.isspace():
            raise ProtocolViolation("arguments after the end of a call")

    def _may_end(self) -> bool:
        return self._open is None or self._open < 0 or is_object("".join(self._arguments))

    def _open_next(self, out: list[bytes]) -> None:
        self._end_block(out)
        key = self._open = next(iter(self._waiting))
        block = _STARTS.get(key) or self._calls[key]
        out.append(_event(b"content_block_start", {"index": self._index, "content_block": block}))
        self._write("".join(self._waiting.pop(key)), out)

    def _write(self, piece: str, out: list[bytes]) -> None:
        """Write a piece of the open block."""
        assert self._open is not None
        key = self._open
        if key >= 0:
            piece = piece if self._arguments else piece.lstrip()
            if piece and not self._arguments and piece[0] != "{":
                raise InvalidToolCall("arguments of a call that are no object")
            if piece:
                self._hold(piece)
                self._arguments.append(piece)
        if piece:
            kind, name = _DELTAS.get(key, _ARGUMENTS)
            delta = {"type": kind, name: piece}
            out.append(_event(b"content_block_delta", {"index": self._index, "delta": delta}))

    def _end_block(self, out: list[bytes]) -> None:
        if self._open is None:
            return
        out.append(_event(b"content_block_stop", {"index": self._index}))
        if self._open >= 0:
            self._over.add(self._open)
        self._open = None
        self._index += 1
        self._arguments.clear()

    def _hold(self, piece: str) -> None:
        self._held_chars += len(piece)
        if self._held_chars > HELD_CHARS_MAX:
            raise ProtocolViolation("tool calls too long")

    def _end(self, out: list[bytes]) -> None:
        if self._finish is None:
            raise ProtocolViolation("[DONE] without a finish reason")
        while self._waiting:
            self._open_next(out)
        self._end_block(out)
        delta = stop(self._finish, called=bool(self._calls), refused=self._refused)
        out.append(_event(b"message_delta", {"delta": delta, "usage": message_usage(self.usage)}))
        out.append(_event(b"message_stop", {}))
        self._ended = True


def _event(kind: bytes, members: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind, encode({"type": kind.decode()} | members))
