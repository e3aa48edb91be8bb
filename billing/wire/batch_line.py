"""A line of a batch as a request: its request id, its name in usage events, and the ticket by which the batch
service sends it to a gateway in place of its tenant's API key, which nobody has. Pure.

A ticket is good for one attempt of one line, acts for one API key, and lapses. It is signed with a key that
is derived from the service key, so that it opens nothing else.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, Self

# Under this path in front of its own, a gateway takes lines of batches; their bearer is a ticket.
LINES_PATH: Final = "/internal/lines"
# As of an input file.
LINES_MAX: Final = 50_000
ATTEMPTS_MAX: Final = 0xFFFF
_TICKET: Final = re.compile(
    r"(?P<key_hash>[0-9a-f]{64})/(?P<batch>[a-z]{1,16}_[0-9a-f]{16})/(?P<line>\d{1,5})/(?P<attempt>\d{1,5})/"
    r"(?P<until_ms>\d{1,15})/(?P<mac>[0-9a-f]{64})"
)


class TicketRefused(ValueError):
    """It is no ticket, not ours, or has lapsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTicket:
    """`key_hash`: of the API key for which the request acts. `batch`: the batch's id. `until_ms`: by the
    clock that all processes share.
    """

    key_hash: str
    batch: str
    line: int
    attempt: int
    until_ms: int

    @property
    def request_id(self) -> str:
        """Of this attempt: the batch's random part, its line, and the attempt. No two attempts share it."""
        return f"req_{self.batch[-16:]}{self.line:04x}{self.attempt:04x}"

    @property
    def name(self) -> str:
        """The line's name, which all its attempts share."""
        return f"{self.batch}/{self.line}"

    def signed(self, service_key: str) -> str:
        """The ticket, as a bearer."""
        text = f"{self.key_hash}/{self.name}/{self.attempt}/{self.until_ms}"
        return f"{text}/{_mac(service_key, text)}"

    @classmethod
    def read(cls, bearer: str, service_key: str) -> Self:
        """Check whose it is; whether it has lapsed is the reader's business. Raises TicketRefused."""
        found = _TICKET.fullmatch(bearer)
        if found is None or not service_key:
            raise TicketRefused
        text, _, mac = bearer.rpartition("/")
        if not hmac.compare_digest(mac, _mac(service_key, text)):
            raise TicketRefused
        ticket = cls(
            key_hash=found["key_hash"],
            batch=found["batch"],
            line=int(found["line"]),
            attempt=int(found["attempt"]),
            until_ms=int(found["until_ms"]),
        )
        if ticket.line >= LINES_MAX or ticket.attempt > ATTEMPTS_MAX:
            raise TicketRefused
        return ticket


def _mac(service_key: str, text: str) -> str:
    derived = hmac.digest(service_key.encode(), b"taas batch line ticket v1", hashlib.sha256)
    return hmac.digest(derived, text.encode(), hashlib.sha256).hex()
