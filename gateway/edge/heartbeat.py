"""Keeps streams from looking dead: a caller that has waited for long, in the queue or for the next token, is
sent a comment or a ping.

Proxies and clients cut silent connections. A heartbeat is not part of the answer: it is not metered, it is no
first token, and another instance may still be tried after it. But it sends the head, so a later failure can
only be an event in the stream.
"""

import asyncio
import logging
from typing import Final

from gateway.edge.client import Client

log = logging.getLogger(__name__)

ROUND_SECONDS_MAX: Final = 1.0


class Heartbeats:
    """The streams of one process. One round serves them all; a timer for each would cost every request
    something.
    """

    def __init__(self, interval_s: float) -> None:
        self._round_s = min(ROUND_SECONDS_MAX, interval_s / 4)
        # One round less than fit into the interval, because the first may come at once.
        self._rounds_silent_max = int(interval_s / self._round_s) - 1 if interval_s else 0
        self._streams: set[Client] = set()

    def watch(self, client: Client) -> None:
        """Add a stream."""
        self._streams.add(client)

    def forget(self, client: Client) -> None:
        """Remove a stream that has ended."""
        self._streams.discard(client)

    async def run(self) -> None:
        """Runs until cancelled. Returns at once if heartbeats are off."""
        while self._rounds_silent_max:
            await asyncio.sleep(self._round_s)
            for client in list(self._streams):
                client.rounds_silent += 1
                if client.rounds_silent >= self._rounds_silent_max:
                    self._beat(client)

    @staticmethod
    def _beat(client: Client) -> None:
        try:
            client.heartbeat()
        except Exception:  # one stream must not end the heartbeats of all others
            log.exception("bug in a heartbeat", extra={"request_id": client.request_id})
