"""An installation with a batch process: simulated engines, gateways, billing, stores; each a process of its
own.
"""

import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI
from openai.types import Batch

from billing.wire.batch_statuses import OPEN_STATUSES
from loadtest import plain_http
from loadtest.faults.parts import MODEL, ROUTES, Installation
from tests.fixtures.gateway import wait_until

ENDED = {"completed", "failed", "expired", "cancelled"}


@dataclass
class BatchStack:
    """What a test asks of it."""

    FILE_BYTES_MAX: ClassVar[int] = 2_000_000

    installation: Installation
    tenant_of: dict[str, str] = field(default_factory=dict)
    # Of the test that runs. One that is not closed is told when it is collected, in whatever test that is.
    clients: ClassVar[list[OpenAI | Anthropic]] = []

    def tenant(self, limits: dict[str, int] | None = None) -> str:
        """The key of a new tenant with these limits."""
        name = f"tenant-{uuid.uuid4().hex[:8]}"
        self.installation.post("tenants", {"name": name})
        if limits:
            self.installation.put("limits", {"tenant": name, "model": "*", **limits})
        return self.key(name)

    def key(self, tenant: str, **fields: Any) -> str:
        """A further key of a tenant."""
        key: str = self.installation.post("keys", {"tenant": tenant, **fields})["key"]
        self.tenant_of[key] = tenant
        return key

    def private_model(self, name: str) -> str:
        """A model with an owner, without an instance: the owner's key."""
        key = self.tenant()
        owner = {"owner": self.tenant_of[key], "routes": ROUTES, "engine_model": MODEL}
        self.installation.post("models", {"name": name, "context_tokens": 2048, **owner})
        self.installation.post("prices", {"model": name, "input": "0.10", "output": "0.40"})
        return key

    def receipt(self, key: str, request_id: str) -> dict[str, Any]:
        """What a request cost, once it is recorded."""
        found: dict[str, Any] = {}

        def recorded() -> bool:
            with self.plain(key) as plain:
                answer = plain.get(f"/v1/usage/requests/{request_id}")
            found.clear()
            found.update(answer.json())
            return answer.status_code == 200 and found["state"] == "recorded"

        wait_until(recorded, f"receipt of {request_id}", instead=lambda: found)
        return found

    def billed(self, key: str) -> int:
        """How many requests of the key's tenant are billed, once all usage is recorded."""
        wait_until(lambda: self.installation.unfinished() == 0, "all usage in the ledger")
        query = (
            "select count(*) from usage_event join tenant on tenant.tenant_id = usage_event.tenant "
            "where tenant.name = %s and billed_output > 0"
        )
        return int(self.installation.sql(query, self.tenant_of[key])[0][0])

    def plain(self, key: str) -> httpx.Client:
        """A client without an SDK."""
        return plain_http.Client(
            base_url=self.installation.gateway_urls[0],
            headers={"authorization": f"Bearer {key}"},
            timeout=30,
        )

    def stored_files(self) -> set[str]:
        """Every object in the store, and whatever else is in its folder."""
        folder = self.installation.folder / "batch-home" / "batch"
        return {str(path) for path in folder.rglob("*") if path.is_file()}

    def stored_at_rest(self) -> set[str]:
        """The same, once no batch of an earlier test runs and all that was given up is deleted."""
        busy = "select (select count(*) from batch_file where state in ('uploading', 'deleting'))"
        busy += " + (select count(*) from batch where status = any(%s))"
        statuses = [str(status) for status in OPEN_STATUSES]
        wait_until(
            lambda: self.installation.sql(busy, statuses)[0][0] == 0,
            "files and batches at rest",
            instead=lambda: self.installation.sql("select state, count(*) from batch_file group by 1"),
        )
        return self.stored_files()

    def metrics_pages(self) -> list[str]:
        """Of every process that has one."""
        targets = self.installation.redis.zrange("taas:scrape-targets", 0, -1)
        addresses = [json.loads(str(target))["address"] for target in targets]
        return [plain_http.get(f"http://{address}/metrics", timeout=10).text for address in addresses]

    def openai(self, key: str) -> OpenAI:
        client = OpenAI(base_url=f"{self.installation.gateway_urls[0]}/v1", api_key=key, max_retries=2)
        self.clients.append(client)
        return client

    def anthropic(self, key: str) -> Anthropic:
        client = Anthropic(base_url=self.installation.gateway_urls[0], api_key=key, max_retries=2)
        self.clients.append(client)
        return client

    def upload(self, client: OpenAI, lines: Iterable[Any]) -> str:
        """A file with these lines: texts as they are, everything else as JSON."""
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        content = "\n".join(texts).encode()
        return client.files.create(file=("input.jsonl", content), purpose="batch").id

    def create(self, client: OpenAI, lines: Iterable[Any], **more: Any) -> Batch:
        words: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"} | more
        return client.batches.create(input_file_id=self.upload(client, lines), **words)

    def ended(self, client: OpenAI, batch_id: str, timeout_s: float = 60) -> Batch:
        """The batch, once it has ended."""
        found: list[Batch] = []

        def over() -> bool:
            found[:] = [client.batches.retrieve(batch_id)]
            return found[0].status in ENDED

        wait_until(over, "end of the batch", timeout_s, instead=lambda: found)
        return found[0]

    def lines_of(self, client: OpenAI, file_id: str | None) -> list[Any]:
        """What is in a file; nothing if there is none."""
        if file_id is None:
            return []
        return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


@pytest.fixture(autouse=True)
def kept_umask() -> Iterator[None]:
    """A store in a folder sets it for its process, which is the tests' here."""
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """Those that a test made are closed at its end."""
    yield
    while BatchStack.clients:
        BatchStack.clients.pop().close()


@pytest.fixture(scope="session")
def batch_stack() -> Iterator[BatchStack]:
    # Not pytest's own folder, into which PostgreSQL's user may not look.
    with tempfile.TemporaryDirectory(prefix="taas-batches-", ignore_cleanup_errors=True) as folder:
        # Its lease is as long as it is by itself: on a busy machine a short one ends while its holder lives.
        installation = Installation(
            Path(folder),
            batches=1,
            batch_settings={"TAAS_BATCH_MAX_FILE_BYTES": str(BatchStack.FILE_BYTES_MAX)},
        )
        try:
            installation.start()
            yield BatchStack(installation)
        finally:
            print((Path(folder) / "batch-0.log").read_text()[-5000:])
            installation.stop()
