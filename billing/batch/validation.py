"""Checks the lines of a batch before any of them is sent, and estimates what they may take. Pure.

It owns the rules of a line; what its body asks for is the gateway's business when the line is sent. Errors
name lines, and never repeat what a line says.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from billing.batch.prefix import prefix_key
from billing.batch.splitting import RawLine
from billing.wire.batch_line import LINES_MAX
from billing.wire.routes import Dialect, RouteFacts

# More are not worth reading; the rest of the file is not read then.
ERRORS_MAX: Final = 100
CUSTOM_ID_CHARS_MAX: Final = 512
_ANTHROPIC_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_BYTES_PER_TOKEN: Final = 4
_COUNT_MAX: Final = 10**9


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with a line, as OpenAI's `errors.data[]` has it. `line` None: with the file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "line": self.line, "param": self.param}


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code)
        self.code, self.message, self.param = code, message, param


@dataclass(slots=True, kw_only=True)
class Checked:
    """What was found. `places`: where each line is (start, length). `order`: their numbers (from 0) as they
    are to be sent. `input_tokens` are an estimate. Of the answers, `output_tokens` are those of lines that
    say how long they may be, `unbounded` is the number of samples that do not say it.
    """

    model: str | None = None
    places: list[tuple[int, int]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    unbounded: int = 0
    errors: list[LineError] = field(default_factory=list)


def check(lines: Iterable[RawLine], route: RouteFacts, bytes_max: int) -> Checked:
    """Check every line. Stops at the first `ERRORS_MAX` errors, or behind the last line that may be there."""
    found = Checked()
    seen: dict[bytes, int] = {}
    keys: list[bytes] = []
    for raw in lines:
        if len(found.places) == LINES_MAX:
            message = f"A batch has at most {LINES_MAX} lines."
            found.errors.append(LineError("too_many_lines", message))
            break
        if len(found.errors) == ERRORS_MAX:
            message = f"There are more errors: only the first {ERRORS_MAX} are listed."
            found.errors.append(LineError("too_many_errors", message))
            break
        found.places.append((raw.start, raw.length))
        try:
            body = _body(raw, route, seen, bytes_max)
            _add(found, body, route)
            keys.append(prefix_key(body))
        except _Wrong as wrong:
            found.errors.append(LineError(wrong.code, wrong.message, raw.number, wrong.param))
    if not found.places and not found.errors:
        found.errors.append(LineError("empty_file", "The input has no lines."))
    if not found.errors:
        found.order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    return found


def read_line(text: bytes, route: RouteFacts) -> tuple[str, dict[str, Any]]:
    """The custom id and the body of a line that was checked."""
    line = orjson.loads(text)
    return line["custom_id"], line["params" if route.dialect is Dialect.ANTHROPIC else "body"]


def _body(raw: RawLine, route: RouteFacts, seen: dict[bytes, int], bytes_max: int) -> dict[str, Any]:
    if raw.text is None:
        raise _Wrong("line_too_long", f"This line is longer than {bytes_max} bytes.")
    try:
        line = orjson.loads(raw.text)
    except orjson.JSONDecodeError:
        raise _Wrong("invalid_json_line", "This line cannot be parsed as valid JSON.") from None
    if not isinstance(line, dict):
        raise _Wrong("invalid_json_line", "This line is not a JSON object.")
    _check_custom_id(line, raw.number, route, seen)
    return _anthropic_body(line) if route.dialect is Dialect.ANTHROPIC else _openai_body(line, route)


def _check_custom_id(line: dict[str, Any], number: int, route: RouteFacts, seen: dict[bytes, int]) -> None:
    custom_id = line.get("custom_id")
    if custom_id is None:
        raise _Wrong("missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        message = f"'custom_id' must be a string of 1 to {CUSTOM_ID_CHARS_MAX} characters."
        raise _Wrong("invalid_custom_id", message, "custom_id")
    if route.dialect is Dialect.ANTHROPIC and not _ANTHROPIC_ID.fullmatch(custom_id):
        raise _Wrong("invalid_custom_id", "'custom_id' must match [a-zA-Z0-9_-]{1,64}.", "custom_id")
    first = seen.setdefault(custom_id.encode("utf-8", "surrogatepass"), number)
    if first != number:
        message = f"This 'custom_id' is that of line {first}; each line needs one of its own."
        raise _Wrong("duplicate_custom_id", message, "custom_id")


def _openai_body(line: dict[str, Any], route: RouteFacts) -> dict[str, Any]:
    if line.get("method") != "POST":
        raise _Wrong("invalid_method", "'method' must be POST.", "method")
    if line.get("url") != route.path:
        raise _Wrong("mismatched_url", f"'url' must be the endpoint of the batch, {route.path}.", "url")
    return _object(line, "body")


def _anthropic_body(line: dict[str, Any]) -> dict[str, Any]:
    for name in line:
        if name not in {"custom_id", "params"}:
            raise _Wrong("unsupported_parameter", "A request has 'custom_id' and 'params' only.", "requests")
    return _object(line, "params")


def _object(line: dict[str, Any], name: str) -> dict[str, Any]:
    body = line.get(name)
    if not isinstance(body, dict):
        raise _Wrong("invalid_type", f"'{name}' must be an object.", name)
    if body.get("stream"):
        raise _Wrong("unsupported_parameter", "A line of a batch cannot be streamed.", f"{name}.stream")
    return body


def _add(found: Checked, body: dict[str, Any], route: RouteFacts) -> None:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _Wrong("missing_required_parameter", "'model' must be a model's name.", "model")
    if found.model is None:
        found.model = model
    elif model != found.model:
        raise _Wrong("mismatched_model", "All lines of a batch must have the same model.", "model")
    found.input_tokens += sum(_text_bytes(body)) // _BYTES_PER_TOKEN
    if route.generates:
        limits = [body[name] for name in _OUTPUT_LIMITS if _is_count(body.get(name))]
        samples = body["n"] if _is_count(body.get("n")) else 1
        if limits:
            found.output_tokens += min(limits) * samples
        else:
            found.unbounded += samples


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _COUNT_MAX


def _text_bytes(value: Any) -> Iterator[int]:
    """The bytes of all texts in a body, and of token ids as if each were a token of text."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            yield len(each.encode("utf-8", "surrogatepass"))
        elif isinstance(each, dict):
            pending += each.values()
        elif isinstance(each, list):
            if each and type(each[0]) is int:
                yield len(each) * _BYTES_PER_TOKEN
            else:
                pending += each
