"""Log lines as JSON on stderr. They never contain what a caller sent: no bodies, no keys, no texts of foreign
exceptions.
"""

import json
import logging
import sys
import time
import traceback
from typing import Any

# Attributes that logging itself puts on a record; any other came through `extra` and is a field of ours.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line per record: time, severity, logger, message, the fields of `extra`, and where an exception was
    raised. An exception's text may quote a request (a JSON error quotes its document), so only its type and
    frames are written, and the number of an operating system error. Only the first line of asyncio's messages
    is kept, because the next one holds the repr of an exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message.split("\n", 1)[0] if record.name == "asyncio" else message,
            "process": record.process,
        }
        for name, value in vars(record).items():
            if name not in _OWN:
                line[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe_exception(record.exc_info[1])
        return json.dumps(line, default=str, separators=(",", ":"))


def describe_exception(exception: BaseException) -> dict[str, Any]:
    """Type, system error number and the last twelve frames; nothing of the exception's text."""
    frames = traceback.extract_tb(exception.__traceback__)[-12:]
    described: dict[str, Any] = {
        "type": f"{type(exception).__module__}.{type(exception).__qualname__}",
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(exception, OSError) and exception.errno is not None:
        described["errno"] = exception.errno
    cause = exception.__cause__ or (None if exception.__suppress_context__ else exception.__context__)
    if cause is not None:
        described["from"] = f"{type(cause).__module__}.{type(cause).__qualname__}"
    return described


def configure_logs(level: str) -> None:
    """Send every logger's lines to stderr as JSON; libraries that log each request or command are kept to
    warnings.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("uvicorn.access", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
