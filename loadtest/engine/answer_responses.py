"""Answers of /v1/responses."""

import uuid
from typing import Any

import orjson

from loadtest.engine.answer import Answer
from loadtest.engine.sequence import Sequence

_DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"content_index":0,"delta":%b,"item_id":"%b","logprobs":[],"output_index":0,'
    b'"sequence_number":%d,"type":"response.output_text.delta"}\n\n'
)
# What vLLM adds to each function that it was given.
_TOOL = dict.fromkeys(("strict", "allowed_callers", "async", "defer_loading", "description", "output_schema"))


class ResponsesAnswer(Answer):
    """A response with one item, a message or a function call, which opens with the first text that may be
    shown.
    """

    _sequence_number = 0
    _item_open = False

    def _event(self, kind: str, content: dict[str, Any]) -> bytes:
        content |= {"sequence_number": self._sequence_number, "type": kind}
        self._sequence_number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(content))

    def _on_start(self) -> list[bytes]:
        self._name_item()
        started = self._response("in_progress")
        return [
            self._event("response.created", {"response": started}),
            self._event("response.in_progress", {"response": started}),
        ]

    def _on_token(self, sequence: Sequence, text: str) -> list[bytes]:
        if self.speech.tool is not None:
            return self._on_call_token(
                self.speech.arguments(sequence, text), self.speech.opens_call(sequence)
            )
        if not text:
            return []
        events = []
        if not self._item_open:
            self._item_open = True
            at = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
            events.append(
                self._event(
                    "response.output_item.added", {"item": self._item("in_progress", []), "output_index": 0}
                )
            )
            events.append(
                self._event("response.content_part.added", at | {"part": self._part("") | {"logprobs": []}})
            )
        self.texts[0].append(text)
        events.append(_DELTA % (orjson.dumps(text), self._item_id.encode(), self._sequence_number))
        self._sequence_number += 1
        return events

    def _on_call_token(self, arguments: str, opens: bool) -> list[bytes]:
        events = []
        if opens:
            self._item_open = True
            added = {"item": self._call("in_progress", ""), "output_index": 0}
            events.append(self._event("response.output_item.added", added))
        if not arguments:
            return events
        self.texts[0].append(arguments)
        delta = {"delta": arguments, "item_id": self._item_id, "output_index": 0}
        return [*events, self._event("response.function_call_arguments.delta", delta)]

    def _on_end(self) -> list[bytes]:
        events = []
        text = "".join(self.texts[0])
        if self._item_open and self.speech.tool is not None:
            done = {"arguments": text, "item_id": self._item_id, "name": self.speech.tool, "output_index": 0}
            events.append(self._event("response.function_call_arguments.done", done))
            item = {"item": self._call("completed", text), "output_index": 0}
            events.append(self._event("response.output_item.done", item))
        elif self._item_open:
            at = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
            item = self._item("completed", [self._part(text)])
            events.append(self._event("response.output_text.done", at | {"logprobs": [], "text": text}))
            events.append(self._event("response.content_part.done", at | {"part": self._part(text)}))
            events.append(self._event("response.output_item.done", {"item": item, "output_index": 0}))
        events.append(self._event("response.completed", {"response": self._whole()}))
        return events

    def _whole(self) -> dict[str, Any]:
        sequence = self.sequences[0]
        cut_short = self.finish_of(sequence) == "length"
        response = self._response("incomplete" if cut_short else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut_short else None
        if not self.job.stream:
            self._name_item()
        text = "".join(self.texts[0])
        if self.speech.tool is not None:
            # Streamed, the pieces of the arguments are kept as they were sent.
            said = text if self.job.stream else self.speech.whole_arguments(sequence, self.texts[0])
            response["output"] = [self._call("completed", said)] if sequence.output else []
        elif text or not self.job.stream:
            response["output"] = [self._item("completed", [self._part(text)])]
        usage = None if self._plan.end_after_tokens is not None else self.usage()
        response["usage"] = None if usage is None else usage.responses()
        return response

    def _name_item(self) -> None:
        kind = "msg" if self.speech.tool is None else "fc"
        self._item_id = f"{kind}_{uuid.uuid4().hex[:16]}"

    def _call(self, status: str, arguments: str) -> dict[str, Any]:
        return {
            "arguments": arguments, "call_id": self.speech.tool_id, "name": self.speech.tool,
            "type": "function_call", "id": self._item_id, "async": None, "caller": None, "namespace": None,
            "status": status,
        }  # fmt: skip

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}

    def _response(self, status: str) -> dict[str, Any]:
        body = self.job.body
        return {
            "id": self.id, "created_at": self.created, "incomplete_details": None,
            "instructions": body.get("instructions"), "metadata": body.get("metadata"),
            "model": self.job.model, "object": "response", "output": [], "parallel_tool_calls": True,
            "temperature": float(body.get("temperature") or 1.0), "tool_choice": body.get("tool_choice",
            "none"),
            "tools": [_TOOL | tool for tool in body.get("tools") or []],
            "top_p": float(body.get("top_p") or 1.0), "background": False,
            "max_output_tokens": self.job.output_max, "max_tool_calls": None, "previous_response_id": None,
            "prompt": None, "reasoning": body.get("reasoning"), "service_tier": "auto", "status": status,
            "text": None, "top_logprobs": None, "truncation": "disabled", "usage": None,
            "user": body.get("user"), "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "kv_transfer_params": None, "ec_transfer_params": None, "input_messages": None,
            "output_messages": None,
        }  # fmt: skip
