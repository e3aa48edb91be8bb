"""What kind of speech a sequence's tokens are: reasoning first, then text or the arguments of one tool call.

A tool is called where `tool_choice` demands one, or where the marker `tool_call` says so; left to itself this model answers with text.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from loadtest.engine.faults import FaultPlan
from loadtest.engine.fields import Body
from loadtest.engine.sequence import Sequence

_OPENING = '{"text":"'
_CLOSING = '"}'


@dataclass(frozen=True, slots=True)
class Speech:
    """`named`: the caller named the tool, which vLLM then ends with `stop` and not with `tool_calls`."""

    reasoning_tokens: int
    tool: str | None
    tool_id: str
    named: bool

    def is_reasoning(self, sequence: Sequence) -> bool:
        """Whether the last token was one of thought."""
        return sequence.output <= self.reasoning_tokens

    def opens_call(self, sequence: Sequence) -> bool:
        """Whether the last token begins the call."""
        return self.tool is not None and sequence.output == self.reasoning_tokens + 1

    def arguments(self, sequence: Sequence, text: str) -> str:
        """The piece of JSON that the last token added; whole only if the model stopped by itself."""
        opening = _OPENING if self.opens_call(sequence) else ""
        return opening + text + (_CLOSING if sequence.finish == "stop" else "")

    def whole_arguments(self, sequence: Sequence, texts: list[str]) -> str:
        """All of it."""
        return _OPENING + "".join(texts[self.reasoning_tokens :]) + (_CLOSING if sequence.finish == "stop" else "")

    def finish(self, finish: str | None) -> str | None:
        """The finish reason as chat tells it."""
        return "tool_calls" if finish == "stop" and self.tool is not None and not self.named else finish


def speech_of(body: Body, plan: FaultPlan) -> Speech:
    """Read off what the caller demands and what the prompt's markers say."""
    demanded, named = _demanded(body)
    tool = plan.tool_call or demanded
    return Speech(
        plan.reasoning_tokens,
        tool,
        f"chatcmpl-tool-{uuid.uuid4().hex[:16]}" if tool else "",
        named and not plan.tool_call,
    )


def _demanded(body: Body) -> tuple[str | None, bool]:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        return _name(choice), True
    if tools and (choice == "required" or (isinstance(choice, dict) and choice.get("type") == "any")):
        return _name(tools[0]), False
    return None, False


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("name") or tool.get("function", {}).get("name"))
