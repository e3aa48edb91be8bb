"""Log probabilities in the forms of chat and completions; the numbers mean nothing."""

from typing import Any

from loadtest.engine.tokens import WORDS

_CHOSEN = -0.5
_OTHER = -1.5
END_OF_TEXT = "<|im_end|>"


def chat_logprob(word: str, top: int) -> dict[str, Any]:
    """One entry of `logprobs.content`."""
    word = word or END_OF_TEXT
    ranked = [word, *(other for other in WORDS[: top + 1] if other != word)][:top]
    return _entry(word, _CHOSEN) | {
        "top_logprobs": [_entry(other, _CHOSEN if other == word else _OTHER) for other in ranked]
    }


def _entry(word: str, logprob: float) -> dict[str, Any]:
    return {"token": word, "logprob": logprob, "bytes": list(word.encode())}


def completion_logprobs(words: list[str], offset: int, top: int) -> dict[str, Any]:
    """The `logprobs` of one chunk or choice; `offset` is where its first token begins in the text."""
    named = [word or END_OF_TEXT for word in words]
    offsets = []
    for word in named:
        offsets.append(offset)
        offset += len(word)
    return {
        "text_offset": offsets,
        "token_logprobs": [_CHOSEN] * len(named),
        "tokens": named,
        "top_logprobs": [
            {word: _CHOSEN} | {other: _OTHER for other in WORDS[:top] if other != word} for word in named
        ],
    }
