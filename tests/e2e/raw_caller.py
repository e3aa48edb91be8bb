"""A caller on a bare socket: reads an answer as far as it wants to, and leaves when it wants to."""

import json
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from tests.fixtures.stack import MODEL, Stack

STORY = "Write a very long story about the sea, the wind and the people who live by them. Begin at once."
CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
ROUTES = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
# Tokens that no machine makes before a test is done with the answer, and that fit the model's context.
LONG = 7000
# Without a byte.
PATIENCE_S = 60
# What a stream's chunk with a token in it holds, and what stands in its last chunk before the closing one.
TOKEN = {CHAT: b'"delta":{"content":"', COMPLETIONS: b'"text":"',
RESPONSES: b"event: response.output_text.delta", MESSAGES: b"text_delta"}  # fmt: skip
FINISH = {CHAT: b'"finish_reason":"', COMPLETIONS: b'"finish_reason":"', RESPONSES: b"output_item.done",
MESSAGES: b"message_delta"}  # fmt: skip
# What only a stream that ended well holds.
END = {CHAT: b"data: [DONE]", COMPLETIONS: b"data: [DONE]", RESPONSES: b"response.completed",
MESSAGES: b"message_stop"}  # fmt: skip


def body_of(path: str, prompt: str = STORY, *, tokens: int, stream: bool = True) -> dict[str, Any]:
    """A request that goes on to the last of its tokens: by order where the route allows that, else by a
    story that greedy decoding does not end.
    """
    shared = {"model": MODEL, "stream": stream}
    messages = [{"role": "user", "content": prompt}]
    match path:
        case "/v1/completions":
            return shared | {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        case "/v1/responses":
            return shared | {"input": prompt, "max_output_tokens": tokens, "temperature": 0}
        case "/v1/messages":
            return shared | {"messages": messages, "max_tokens": tokens, "temperature": 0}
        case _:
            return shared | {"messages": messages, "max_tokens": tokens, "ignore_eos": True}


class RawCaller:
    """One request, sent when this is made."""

    def __init__(self, stack: Stack, path: str, body: dict[str, Any], key: str | None = None) -> None:
        self.seen = b""
        self._socket = socket.create_connection(("127.0.0.1", stack.gateway.port), timeout=PATIENCE_S)
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or stack.key}\r\nconnection: "
            "close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        try:
            self._socket.sendall(head.encode() + content)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> "RawCaller":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Close, whatever is still to come."""
        self._socket.close()

    def read_until(self, mark: bytes, times: int = 1) -> None:
        """Until this has been seen so often. AssertionError when the answer ends before."""
        while self.seen.count(mark) < times:
            piece = self._socket.recv(1 if mark == b"\r\n\r\n" else 65_536)
            assert piece, f"no {mark!r} ×{times} in {self.seen!r}"
            self.seen += piece

    def read_more(self, mark: bytes, times: int) -> None:
        """Until this has been seen so many times more."""
        self.read_until(mark, self.seen.count(mark) + times)

    def read_all(self) -> bytes:
        """To the end, or to where the other side broke off."""
        try:
            while piece := self._socket.recv(65_536):
                self.seen += piece
        except ConnectionError:
            pass
        return self.seen

    def read_for(self, patience_s: float) -> str:
        """Until the end, or until then: `left`. At the end: `answered`, `refused`, or `cut` where the
        other side broke off.
        """
        deadline = time.monotonic() + patience_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                piece = self._socket.recv(65_536)
                self.seen += piece
                if not piece:
                    return self._outcome()
        except TimeoutError:
            pass
        except ConnectionError:
            return self._outcome()
        finally:
            self._socket.settimeout(PATIENCE_S)
        return "left"

    def _outcome(self) -> str:
        head, _, content = self.seen.partition(b"\r\n\r\n")
        if b" 200 " not in head[:20]:
            return "refused" if head else "cut"
        length = re.search(rb"content-length: (\d+)", head)
        whole = content.endswith(b"0\r\n\r\n") if length is None else len(content) == int(length.group(1))
        return "answered" if whole else "cut"

    @property
    def request_id(self) -> str:
        """Of the head, once it has been read."""
        found = re.search(rb"x-request-id: (req_[0-9a-f]+)", self.seen)
        assert found is not None, self.seen
        return found.group(1).decode()


@contextmanager
def callers_of(stack: Stack, paths: Sequence[str], *, tokens: int) -> Iterator[list[RawCaller]]:
    """A stream on each of these routes; whatever happens, none is left open."""
    with ExitStack() as closing:
        yield [closing.enter_context(RawCaller(stack, path, body_of(path, tokens=tokens))) for path in paths]


def the_error(text: bytes) -> str:
    """The one error that a broken stream ends with, as JSON. AssertionError if there are others, if an event
    is not whole, or if the stream also ends as a success does.
    """
    lines = [line for line in text.decode().splitlines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    errors = [event for event in events if event.get("error") is not None]
    assert len(errors) == 1, text[-500:]
    assert events[-1] is errors[0]
    assert not any(end in text for end in END.values()), text[-500:]
    return json.dumps(errors[0])
