"""What a log line is, and what it must never hold."""

import json
import logging
import sys

from gateway.process.logs import JsonFormatter

CANARY = "canary-7f3a"


def line_of(
    error: BaseException | None = None, message: str = "it broke", **extra: object
) -> dict[str, object]:
    record = logging.LogRecord("gateway.x", logging.ERROR, __file__, 1, message, None, None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    vars(record).update(extra)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert CANARY not in text
    line: dict[str, object] = json.loads(text)
    return line


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException:
        caught = sys.exc_info()[1]
        assert caught is not None
        return caught


def test_line_has_time_level_message_and_extra_fields() -> None:
    line = line_of(request_id="req_1", port=8000)
    assert line["message"] == "it broke"
    assert line["level"] == "error"
    assert line["request_id"] == "req_1"
    assert line["port"] == 8000
    assert str(line["at"]).endswith("Z")


def test_fault_24_exception_is_named_and_located_but_not_quoted() -> None:
    line = line_of(raised(ValueError(f"bad value: {CANARY}")))
    exception = line["exception"]
    assert isinstance(exception, dict)
    assert exception["type"] == "builtins.ValueError"
    assert "test_logs.py" in exception["at"][0]


def test_fault_24_cause_is_named_but_not_quoted() -> None:
    error = RuntimeError(CANARY)
    error.__cause__ = KeyError(CANARY)
    exception = line_of(raised(error))["exception"]
    assert isinstance(exception, dict)
    assert exception["from"] == "builtins.KeyError"


def test_error_number_of_the_system_is_kept() -> None:
    exception = line_of(raised(ConnectionRefusedError(111, "refused")))["exception"]
    assert isinstance(exception, dict)
    assert exception["errno"] == 111


def test_fault_24_what_asyncio_says_of_a_lost_task_is_cut() -> None:
    text = f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{CANARY}')>"
    assert line_of(message=text, name="asyncio")["message"] == "Task exception was never retrieved"


def test_message_of_several_lines_stays_one_line() -> None:
    assert (
        line_of(message="Traceback\nwhy the application could not start")["message"]
        == "Traceback\nwhy the application could not start"
    )
