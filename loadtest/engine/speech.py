"""What kind of speech a sequence's tokens are: reasoning first, then text or the arguments of one tool call.

A tool is called where `tool_choice` demands one, or where a marker or an order `tool_call` says so; left to
itself this model answers with text. The arguments are the words that the engine makes up, or those of the
order: then the call ends when they have been said.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from loadtest.engine.faults import FaultPlan
from loadtest.engine.fields import Body
from loadtest.engine.sequence import Sequence
from loadtest.engine.tokens import split

_OPENING = '{"text":"'
_CLOSING = '"}'


@dataclass(frozen=True, slots=True)
class Speech:
    """`named`: the caller named the tool, which vLLM then ends with `stop` and not with `tool_calls`.

    `script`: the arguments that were ordered, token by token; empty = they are made up.
    """

    reasoning_tokens: int
    tool: str | None
    tool_id: str
    named: bool
    script: tuple[str, ...] = ()

    @property
    def length(self) -> int | None:
        """How many tokens an ordered call has, with those that open and end it; None: nothing was ordered."""
        return self.reasoning_tokens + 1 + len(self.script) + 1 if self.script else None

    def is_reasoning(self, sequence: Sequence) -> bool:
        """Whether the last token was one of thought."""
        return sequence.output <= self.reasoning_tokens

    def opens_call(self, sequence: Sequence) -> bool:
        """Whether the last token begins the call."""
        return self.tool is not None and sequence.output == self.reasoning_tokens + 1

    def arguments(self, sequence: Sequence, text: str) -> str:
        """The piece of JSON that the last token added; whole only if the model stopped by itself.

        The token that opens a call stands for the tool's name.
        """
        first = self.reasoning_tokens + 1
        if sequence.output == first and sequence.finish != "stop":
            return ""
        if self.script:
            at = sequence.output - first - 1
            return "".join(self.script[at : at + 1])
        opening = _OPENING if sequence.output <= first + 1 else ""
        return opening + text + (_CLOSING if sequence.finish == "stop" else "")

    def whole_arguments(self, sequence: Sequence, texts: list[str]) -> str:
        """All of it."""
        if self.script:
            return "".join(self.script[: sequence.output - self.reasoning_tokens - 1])
        if sequence.output == self.reasoning_tokens + 1 and sequence.finish != "stop":
            return ""
        return (
            _OPENING
            + "".join(texts[self.reasoning_tokens + 1 :])
            + (_CLOSING if sequence.finish == "stop" else "")
        )

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
        tuple(split(plan.tool_arguments or "")),
    )


def offered_tools(body: Body) -> set[str]:
    """The names of the tools that a request offers."""
    tools = body.get("tools")
    return {_name(tool) for tool in tools if isinstance(tool, dict)} if isinstance(tools, list) else set()


def _demanded(body: Body) -> tuple[str | None, bool]:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        return _name(choice), True
    if tools and (choice == "required" or (isinstance(choice, dict) and choice.get("type") == "any")):
        return _name(tools[0]), False
    return None, False


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("name") or tool.get("function", {}).get("name"))
