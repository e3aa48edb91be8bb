"""Lines of batches."""

from typing import Any

MODEL = "sim"


def chat(custom_id: str, content: str = "Say hello.", **body: Any) -> dict[str, Any]:
    """A line with a chat request."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}
