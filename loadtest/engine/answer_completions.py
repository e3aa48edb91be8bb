"""Answers of /v1/completions."""

from typing import Any

import orjson

from loadtest.engine.answer import FINGERPRINT, Answer
from loadtest.engine.job import prompt_token_ids
from loadtest.engine.logprobs import completion_logprobs
from loadtest.engine.sequence import Sequence

_USAGE = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}'
_DONE = b"data: [DONE]\n\n"


class CompletionAnswer(Answer):
    """`text_completion`, whole and in chunks; with `echo` the prompt comes before the first token's text."""

    def _on_first_token(self) -> list[bytes]:
        self._head = (
            b'data: {"id":%b,"object":"text_completion","created":%d,"model":%b,'
            b'"choices":[{"index":'
        ) % (
            orjson.dumps(self.id), self.created, orjson.dumps(self.job.model),
        )  # fmt: skip
        self._offsets = [0] * len(self.sequences)
        return []

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        finish = self.finish_of(sequence)
        prompt_ids = b"null"
        if self.job.echo and sequence.output == 1:
            text = self._echoed(sequence, text)
            prompt_ids = orjson.dumps(prompt_token_ids(self._prompt(sequence)))
        logprobs = b"null"
        if self.job.logprobs is not None and sequence.finish != "abort":
            logprobs = orjson.dumps(
                completion_logprobs([sequence.word], self._offsets[sequence.index], self.job.logprobs)
            )
            self._offsets[sequence.index] += len(sequence.word)
        usage = self.sequence_usage(sequence) if self.job.continuous_usage else None
        counts = b"" if usage is None else _USAGE % (usage.prompt, usage.prompt + usage.output, usage.output)
        fingerprint = (
            b""
            if self.job.include_usage or finish is None
            else b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
        )
        return [
            b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":%b,'
            b'"token_ids":null}]%b%b}\n\n'
            % (
                self._head, sequence.index, orjson.dumps(text), logprobs, orjson.dumps(finish),
                orjson.dumps(sequence.stop_reason), prompt_ids, counts, fingerprint,
            )
        ]  # fmt: skip

    def _on_end(self) -> list[bytes]:
        usage = self.usage() if self.job.include_usage else None
        if usage is None:
            return [_DONE]
        final = {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.job.model,
            "choices": [], "usage": usage.completions_final(), "system_fingerprint": FINGERPRINT,
        }  # fmt: skip
        return [b"data: %b\n\n" % orjson.dumps(final), _DONE]

    def _prompt(self, sequence: Sequence) -> Any:
        return self.job.prompts[sequence.index // self.job.samples]

    def _echoed(self, sequence: Sequence, text: str) -> str:
        prompt: str = self._prompt(sequence).text
        return prompt if self.job.output_asked == 0 else prompt + text

    def _whole(self) -> dict[str, Any]:
        usage = None if self._plan.end_after_tokens is not None else self.usage()
        answer: dict[str, Any] = {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.job.model,
            "choices": [self._choice(sequence) for sequence in self.sequences], "service_tier": None,
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip
        if usage is not None:
            answer["usage"] = usage.completions()
        return answer | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        text = "".join(self.texts[sequence.index])
        if self.job.echo:
            text = self._echoed(sequence, text)
        logprobs = None
        if self.job.logprobs is not None:
            logprobs = completion_logprobs(self.words[sequence.index], 0, self.job.logprobs)
        return {
            "index": sequence.index, "text": text, "logprobs": logprobs,
            "finish_reason": self.finish_of(sequence), "stop_reason": sequence.stop_reason, "token_ids": None,
            "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None,
        }  # fmt: skip
