"""A caller of batches, one after the other. In the end every line that it was promised an answer of is held
against the files that it got and the bills that were made of it.
"""

import json
import threading
import time
from collections import Counter
from typing import Any, Final

import httpx

from loadtest import plain_http
from loadtest.faults.parts import MODEL, Installation

LINES: Final = 24
_AGAIN_S: Final = 0.2
_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchCaller(threading.Thread):
    """Until stopped. `made`: the ids of its batches, each of `LINES` lines."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(daemon=True)
        self.made: list[str] = []
        self._urls = installation.gateway_urls
        self._key = next(iter(installation.keys.values()))
        self._installation = installation
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.made.append(self._create())
                while not self._stopped.is_set() and self._status(self.made[-1])["status"] not in _ENDED:
                    time.sleep(_AGAIN_S)
            except (httpx.HTTPError, OSError):
                time.sleep(_AGAIN_S)

    def stop(self) -> None:
        """No further batch begins; those that are open go on."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def open(self) -> int:
        """How many of its batches have not ended."""
        return sum(self._status(batch)["status"] not in _ENDED for batch in self.made)

    def wrong(self) -> list[tuple[str, str]]:
        """Lines that are not in the files once, or not billed as they are there: their names, and why."""
        found: list[tuple[str, str]] = []
        query = "select line, count(*) from usage_event where billed_output > 0 group by line"
        billed = dict(self._installation.sql(query))
        for batch_id in self.made:
            batch = self._status(batch_id)
            there: Counter[int] = Counter()
            answered: set[int] = set()
            for name in ("output_file_id", "error_file_id"):
                if batch[name] is not None:
                    text = self._ask("GET", f"/v1/files/{batch[name]}/content").text
                    numbers = [int(json.loads(line)["custom_id"]) for line in text.splitlines()]
                    there.update(numbers)
                    answered |= set(numbers) if name == "output_file_id" else set()
            for number in range(LINES):
                line = f"{batch_id}/{number}"
                if there[number] != 1:
                    found.append(
                        (line, f"is in the files of a {batch['status']} batch {there[number]} times")
                    )
                if billed.get(line, 0) != (number in answered):
                    found.append((line, f"is billed {billed.get(line, 0)} times"))
        return found

    def _create(self) -> str:
        chat = {"model": MODEL, "max_tokens": 30}
        lines = [
            {
                "custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
                "body": chat | {"messages": [{"role": "user", "content": f"{len(self.made)} of {number}"}]},
            }
            for number in range(LINES)
        ]  # fmt: skip
        content = "\n".join(map(json.dumps, lines)).encode()
        upload = self._ask("POST", "/v1/files", files={"file": ("in", content)}, data={"purpose": "batch"})
        body = {
            "input_file_id": upload.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        return str(self._ask("POST", "/v1/batches", json=body).json()["id"])

    def _status(self, batch_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("GET", f"/v1/batches/{batch_id}").json()
        return found

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Of the first gateway that answers. Raises httpx.HTTPError."""
        headers = {"authorization": f"Bearer {self._key}"}
        failed: httpx.HTTPError | None = None
        for url in self._urls:
            try:
                answer = plain_http.request(method, url + path, headers=headers, timeout=30, **more)
                return answer.raise_for_status()
            except httpx.HTTPError as exc:
                failed = exc
        assert failed is not None
        raise failed
