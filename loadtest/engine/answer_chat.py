"""Answers of /v1/chat/completions."""

from typing import Any

import orjson

from loadtest.engine.answer import FINGERPRINT, Answer
from loadtest.engine.logprobs import chat_logprob
from loadtest.engine.sequence import Sequence

_USAGE = (
    b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":null}'
)
_DONE = b"data: [DONE]\n\n"


class ChatAnswer(Answer):
    """`chat.completion` and its chunks."""

    def _on_first_token(self) -> list[bytes]:
        self._head = (
            b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"choices":['
        ) % (
            orjson.dumps(self.id), self.created, orjson.dumps(self.job.model),
        )  # fmt: skip
        usage = self._chunk_usage(
            Sequence(
                answer=self,
                engine_id="",
                index=0,
                prompt_tokens=self.sequences[0].prompt_tokens,
                seed=0,
                first_position=0,
                limits=self.sequences[0].limits,
            )
        )
        return [
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}]%b'
            b',"prompt_token_ids":null,"prompt_text":null}\n\n' % (self._head, index, usage)
            for index in range(len(self.sequences))
        ]

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        finish = self.speech.finish(self.finish_of(sequence))
        logprobs = b"null"
        if self.job.logprobs is not None and not (finish == "abort" and not text):
            logprobs = orjson.dumps({"content": [chat_logprob(sequence.word, self.job.logprobs)]})
        if finish is None:
            ending, fingerprint = b"null", b""
        else:
            ending = b'%b,"stop_reason":%b' % (orjson.dumps(finish), orjson.dumps(sequence.stop_reason))
            fingerprint = (
                b"" if self.job.include_usage else b',"system_fingerprint":"%b"' % FINGERPRINT.encode()
            )
        return [
            b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b,"token_ids":null}]%b%b}\n\n'
            % (
                self._head,
                sequence.index,
                self._delta(sequence, text),
                logprobs,
                ending,
                self._chunk_usage(sequence),
                fingerprint,
            )
        ]

    def _delta(self, sequence: Sequence, text: str) -> bytes:
        speech = self.speech
        if speech.is_reasoning(sequence):
            return b'{"reasoning":%b}' % orjson.dumps(text)
        if speech.tool is None:  # empty at the end, as of a vLLM that parses tool calls
            return b'{"content":%b}' % orjson.dumps(text) if text else b"{}"
        arguments = speech.arguments(sequence, text)
        call: dict[str, Any] = {"index": 0, "function": {"arguments": arguments}}
        if speech.opens_call(sequence):
            function = {"name": speech.tool} | ({"arguments": arguments} if arguments else {})
            call = {"id": speech.tool_id, "type": "function", "index": 0, "function": function}
        return orjson.dumps({"content": None, "tool_calls": [call]})

    def _chunk_usage(self, sequence: Sequence) -> bytes:
        if not self.job.continuous_usage:
            return b""
        usage = self.sequence_usage(sequence)
        return b"" if usage is None else _USAGE % (usage.prompt, usage.prompt + usage.output, usage.output)

    def _on_end(self) -> list[bytes]:
        usage = self.usage() if self.job.include_usage else None
        if usage is None:
            return [_DONE]
        final = {
            "id": self.id, "object": "chat.completion.chunk", "created": self.created,
            "model": self.job.model, "choices": [], "usage": usage.chat_final(),
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip
        return [b"data: %b\n\n" % orjson.dumps(final), _DONE]

    def _whole(self) -> dict[str, Any]:
        usage = None if self._plan.end_after_tokens is not None else self.usage()
        answer: dict[str, Any] = {
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.job.model,
            "choices": [self._choice(sequence) for sequence in self.sequences], "service_tier": None,
            "system_fingerprint": FINGERPRINT,
        }  # fmt: skip
        if usage is not None:
            answer["usage"] = usage.chat()
        nulls = (
            "prompt_logprobs",
            "prompt_token_ids",
            "prompt_text",
            "kv_transfer_params",
            "ec_transfer_params",
            "metrics",
        )
        return answer | dict.fromkeys(nulls)

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        message = self._message(sequence)
        top = self.job.logprobs
        noted = (
            None
            if top is None
            else {"content": [chat_logprob(word, top) for word in self.words[sequence.index]]}
        )
        return {
            "index": sequence.index, "message": message, "logprobs": noted,
            "finish_reason": self.speech.finish(self.finish_of(sequence)),
            "stop_reason": sequence.stop_reason, "token_ids": None, "routed_experts": None,
        }  # fmt: skip

    def _message(self, sequence: Sequence) -> dict[str, Any]:
        speech, texts = self.speech, self.texts[sequence.index]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts[speech.reasoning_tokens :])}
        message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
        if speech.reasoning_tokens:
            message["reasoning"] = "".join(texts[: speech.reasoning_tokens])
            message["content"] = message["content"] or None
        if speech.tool is not None and sequence.output > speech.reasoning_tokens:
            function = {"name": speech.tool, "arguments": speech.whole_arguments(sequence, texts)}
            message |= {
                "content": None,
                "tool_calls": [{"id": speech.tool_id, "type": "function", "function": function}],
            }
        return message
