"""A ticket says which line it is for, and nobody else can make one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.batch_line import ATTEMPTS_MAX, LINES_MAX, LineTicket, TicketRefused

KEY = "taas-service-key"
HEX = "0123456789abcdef"
TICKETS = st.builds(
    LineTicket,
    key_hash=st.text(HEX, min_size=64, max_size=64),
    batch=st.sampled_from(["batch_", "msgbatch_"]).flatmap(
        lambda prefix: st.text(HEX, min_size=16, max_size=16).map(lambda digits: prefix + digits)
    ),
    line=st.integers(0, LINES_MAX - 1),
    attempt=st.integers(0, ATTEMPTS_MAX),
    until_ms=st.integers(0, 10**15 - 1),
)


@given(TICKETS)
def test_a_ticket_is_read_as_it_was_written(ticket: LineTicket) -> None:
    assert LineTicket.read(ticket.signed(KEY), KEY) == ticket


@given(TICKETS, TICKETS)
def test_two_attempts_have_two_request_ids(first: LineTicket, second: LineTicket) -> None:
    def what(ticket: LineTicket) -> tuple[str, int, int]:
        return ticket.batch[-16:], ticket.line, ticket.attempt

    assert (first.request_id == second.request_id) == (what(first) == what(second))
    assert len(first.request_id) == len("req_") + 24


@given(TICKETS, st.integers(0, 400), st.characters(codec="ascii"))
def test_a_ticket_that_was_changed_is_refused(ticket: LineTicket, place: int, char: str) -> None:
    text = ticket.signed(KEY)
    place %= len(text)
    changed = text[:place] + char + text[place + 1 :]
    if changed != text:
        with pytest.raises(TicketRefused):
            LineTicket.read(changed, KEY)


@given(TICKETS, st.text(max_size=20))
def test_another_key_opens_nothing(ticket: LineTicket, other: str) -> None:
    for key in {other, ""} - {KEY}:
        with pytest.raises(TicketRefused):
            LineTicket.read(ticket.signed(key), KEY)
    with pytest.raises(TicketRefused):
        LineTicket.read(ticket.signed(""), "")


@pytest.mark.parametrize(("line", "attempt"), [(LINES_MAX, 1), (0, ATTEMPTS_MAX + 1)])
def test_a_line_beyond_the_last_is_refused(line: int, attempt: int) -> None:
    ticket = LineTicket(key_hash="0" * 64, batch="batch_" + "0" * 16, line=line, attempt=attempt, until_ms=0)
    with pytest.raises(TicketRefused):
        LineTicket.read(ticket.signed(KEY), KEY)
