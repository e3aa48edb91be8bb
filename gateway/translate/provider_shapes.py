"""What is read of providers' answers. Other members are skipped; a wrong type raises ProtocolViolation. JSON
that is passed on as it stands is `Raw`, so that no number in it changes.
"""

from typing import Any, TypeVar

from msgspec import MsgspecError, Raw, Struct
from msgspec.json import Decoder

from gateway.stream.meter import ProtocolViolation

T = TypeVar("T")


class Ending(Struct):
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None

    @property
    def explanation(self) -> Any:
        """Why a model refused. OpenAI calls it the refusal itself."""
        return (self.stop_details or {}).get("explanation")


class Block(Ending):
    """A block of content, its beginning in a stream, or a delta of it or of the whole message."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw()


class Message(Ending):
    content: list[Block] = []
    usage: dict[str, Any] | None = None


class MessageEvent(Struct):
    type: str
    index: int = 0
    message: Message | None = None
    content_block: Block | None = None
    delta: Block | None = None
    usage: dict[str, Any] | None = None


class Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class Call(Struct):
    index: int = 0
    id: str | None = None
    function: Function = Function()


class Said(Struct, frozen=True):
    """The message of a choice, or a delta of it. vLLM calls its thinking `reasoning`."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class Choice(Struct):
    """`stop_reason` is vLLM's: the stop string that ended the answer, or the id of a token."""

    message: Said = Said()
    delta: Said = Said()
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Completion(Struct):
    """A chat completion, or a chunk of one."""

    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    error: Any = None


def read(decoder: Decoder[T], text: bytes) -> T:
    try:
        return decoder.decode(text)
    except (MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise ProtocolViolation("not what the provider's dialect says") from exc


def data_of(event: bytes) -> bytes:
    """The data of a server-sent event, empty where it has none. Its type is in the data too. Raises
    ProtocolViolation for what is no event.
    """
    lines = event.split(b"\n")
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    if not (data or {b"", b"event", b"id", b"retry"}.issuperset(line.partition(b":")[0] for line in lines)):
        raise ProtocolViolation("not a stream of events")
    return b"\n".join(data)
