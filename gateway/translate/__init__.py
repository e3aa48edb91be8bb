"""Between OpenAI's chat completions and Anthropic's messages, for a model whose provider speaks the other
dialect than its caller. Pure.

| caller | request | whole answer | stream |
| --- | --- | --- | --- |
| chat | `messages_request` | `chat_answer` | `ChatStream` |
| messages | `chat_request` | `message_answer` | `MessagesStream` |

Requests are bodies that `gateway.protocol` has checked, without nulls and without what stays here
(`gateway.upstream.provider_body`). What the other dialect cannot say is refused by name
(`UnsupportedParameter`) if it could change the answer, else left out: docs/fields.md has tables. Answers are
a provider's bytes, which may be anything: what is not its dialect raises `ProtocolViolation`. The caller's
meter reads a translated answer like an engine's own. Errors pass as they are: no caller gets a provider's
error (`gateway.upstream.provider_errors`).
"""

from gateway.translate.answers import chat_answer, message_answer
from gateway.translate.chat_stream import ChatStream
from gateway.translate.messages_stream import MessagesStream
from gateway.translate.to_chat import chat_request
from gateway.translate.to_messages import messages_request

__all__ = [
    "ChatStream", "MessagesStream", "chat_answer", "chat_request", "message_answer", "messages_request",
]  # fmt: skip
