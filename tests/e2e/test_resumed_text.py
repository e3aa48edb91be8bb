"""What resuming a stream relies on: real vLLM goes on from the end of a token, made to begin with what the
caller has beyond it, as if it had not stopped.
"""

import re
from typing import Any

import pytest

from tests.fixtures.stack import MODEL, Stack

pytestmark = pytest.mark.vllm

GREEDY = {"model": MODEL, "temperature": 0}
QUESTION = {"role": "user", "content": "Tell a long story about the moon."}
PROMPT = "Once upon a time, there was a tale of a violin (11)."


def asked(route: str, text: str) -> dict[str, Any]:
    """To go on after this text."""
    if route == "completions":
        return {"prompt": PROMPT + text}
    if not text:
        return {"messages": [QUESTION]}
    said = [QUESTION, {"role": "assistant", "content": text}]
    return {"messages": said, "continue_final_message": True, "add_generation_prompt": False}


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_text_that_ends_inside_a_word_goes_on_as_if_it_had_not_stopped(stack: Stack, route: str) -> None:
    with stack.gateway.client(stack.key) as client:

        def said(text: str, tokens: int, begins_with: str = "") -> str:
            body = GREEDY | asked(route, text) | {"max_tokens": tokens}
            if begins_with:
                body["structured_outputs"] = {"regex": re.escape(begins_with) + r"[\s\S]*"}
            answer = client.post(f"/v1/{route}", json=body)
            assert answer.status_code == 200, answer.text
            (choice,) = answer.json()["choices"]
            return str(choice.get("text") or choice["message"]["content"])

        whole = said("", 20)
        inside = [at for at in range(20, len(whole) - 30) if whole[at - 2 : at + 1].isalpha()][::16]
        assert inside
        for at in inside:
            start = whole.rindex(" ", 0, at)
            text, rest = whole[:start], whole[start:at]
            assert whole.startswith(text + said(text, 4, rest)), (text, rest)
