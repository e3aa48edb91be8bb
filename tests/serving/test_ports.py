"""Promises of choosing an engine's port."""

import socket
from contextlib import closing

from serving.ports import claim_port
from tests.fixtures.valkey import free_port


def test_two_workers_that_start_together_get_different_ports() -> None:
    first_port = free_port()
    one, claim_one = claim_port("127.0.0.1", first_port)
    two, claim_two = claim_port("127.0.0.1", first_port)
    with claim_one, claim_two:
        assert one < two


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        taken = server.getsockname()[1]
        port, claim = claim_port("127.0.0.1", taken)
        with claim:
            assert port > taken


def test_a_claim_that_is_closed_is_free_again() -> None:
    first_port = free_port()
    one, claim = claim_port("127.0.0.1", first_port)
    claim.close()
    two, claim = claim_port("127.0.0.1", first_port)
    claim.close()
    assert one == two
