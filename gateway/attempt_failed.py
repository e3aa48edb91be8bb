"""Why an attempt on an instance has failed before its first token, and what that says of the instance."""

import re
from email.utils import parsedate_to_datetime
from typing import Final

from gateway.errors import GatewayError

# Why an attempt ends although its instance has not failed: its engine does not know a parameter of the
# request; it gets no request now.
UNSUPPORTED: Final = "unsupported_parameter"
BREAKER_OPEN: Final = "breaker_open"
NO_FAILURES: Final = frozenset({UNSUPPORTED, BREAKER_OPEN})
# The engine refuses the gateway, whatever the request: its key or its account.
REFUSED_US: Final = "refused_us"
_REFUSES_US: Final = frozenset({401, 402, 403})
# With `retry-after`: the engine is well and takes no more now.
_BUSY: Final = frozenset({503, 529})
_SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


class AttemptFailed(Exception):
    """This instance failed before its first token, so another may be tried. `error`: for the caller, if no
    other instance is left. `limited`: it takes no more requests now, for `retry_after_s` if it says so.
    """

    def __init__(
        self, error: GatewayError, kind: str, *, retry_after_s: float | None = None, limited: bool = False
    ) -> None:
        super().__init__(kind)
        self.error = error
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.limited = limited

    @property
    def says(self) -> str:
        """For the log."""
        if self.kind == REFUSED_US:
            return "engine refuses our key or account"
        return "engine failed before its first token"


def failed_with(status: int, retry_after: bytes, error: GatewayError, now: float) -> AttemptFailed | None:
    """What an answer with this status says of the instance; None: it is well, and refuses the request.
    `now`: since the epoch.
    """
    kind, wait_s = f"status_{status // 100}xx", retry_after_s(retry_after, now)
    if status == 429 or (status in _BUSY and wait_s is not None):
        return AttemptFailed(error, kind, retry_after_s=wait_s, limited=True)
    if status in _REFUSES_US:
        return AttemptFailed(error, REFUSED_US)
    return AttemptFailed(error, kind) if status >= 500 else None


def retry_after_s(header: bytes, now: float) -> float | None:
    """The seconds of a `retry-after` header, in either of its forms; None if it has none that can be read.
    `now`: since the epoch.
    """
    text = header.decode("latin-1").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
