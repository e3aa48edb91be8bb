"""POSTs to others' servers: receivers of alerts and sinks. Whatever such a server does, a call ends in time,
and no more of its answer is read than was asked for. No redirect is followed.

httpx bounds the time of each read alone, and a server may send a byte at a time: so a loop of asyncio, in a
thread of its own, bounds the whole of a call. Any thread may use it.
"""

import asyncio
import threading
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx

BODY_BYTES: Final = 65_536
SUCCESS: Final = range(200, 300)
_LOOK_UPS: Final = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; of the body the first 64 KiB, if it was to be read."""

    status: int
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether it took what was sent."""
        return self.status in SUCCESS


class Outgoing:
    """Connections to others' servers. `verify`: whose certificates it trusts, as httpx takes it; a call ends
    after `timeout_s`, half of it for connecting.
    """

    def __init__(self, *, verify: Any, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=timeout_s / 2),
            trust_env=False,
            follow_redirects=False,
            verify=verify,
        )
        self._loop = asyncio.new_event_loop()
        # Names are looked up in threads, and some name servers do not answer.
        self._loop.set_default_executor(ThreadPoolExecutor(_LOOK_UPS, "outgoing-names"))
        self._thread = threading.Thread(target=self._loop.run_forever, name="outgoing", daemon=True)
        self._thread.start()

    def post(
        self, url: str, content: bytes, headers: Mapping[str, str], *, body_of: Container[int] = ()
    ) -> Answer:
        """`body_of`: of which statuses the body is read. Raises httpx.HTTPError, httpx.InvalidURL."""
        call = self._post(url, content, headers, body_of)
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def close(self) -> None:
        """Close the connections."""
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _post(
        self, url: str, content: bytes, headers: Mapping[str, str], body_of: Container[int]
    ) -> Answer:
        # What comes is bounded, so it must not grow when it is unpacked.
        headers = {**headers, "accept-encoding": "identity"}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("POST", url, content=content, headers=headers) as answer,
            ):
                body = bytearray()
                if answer.status_code in body_of:
                    async for piece in answer.aiter_raw():
                        body += piece[: BODY_BYTES - len(body)]
                        if len(body) == BODY_BYTES:
                            break
                return Answer(answer.status_code, bytes(body))
        except TimeoutError as exc:
            raise httpx.ReadTimeout(f"no answer within {self._timeout_s} s") from exc
