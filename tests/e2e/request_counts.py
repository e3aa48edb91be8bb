"""What each request has produced: as vLLM counted it, and as the ledger has it."""

from collections.abc import Collection

from loadtest import plain_http
from tests.fixtures.gateway import wait_until
from tests.fixtures.stack import Stack

Tokens = tuple[int, int]
"""Prompt and output."""

# With what billing has found in the engine beyond the request's own event.
_RECORDED = """
SELECT e.request_id, e.produced_prompt + coalesce(sum(r.produced_prompt), 0),
  e.produced_output + coalesce(sum(r.produced_output), 0)
FROM usage_event e LEFT JOIN usage_event r
  ON r.kind = 'reconciliation' AND r.evidence -> 'requests' = jsonb_build_array(e.request_id)
WHERE e.tenant = %s GROUP BY e.request_id, e.produced_prompt, e.produced_output
"""
_ENTRIES = (
    "SELECT t.request_id FROM ledger_transaction t JOIN usage_event u USING (request_id) WHERE u.tenant = %s"
)


def engine_counts(stack: Stack) -> dict[str, Tokens]:
    """Of each request that has ended in the engine since it started."""
    entry = stack.instance() or {}
    headers = {"authorization": f"Bearer {entry['key']}"}
    page = plain_http.get(f"{entry['url']}/taas/request_counts?after=0", headers=headers, timeout=30)
    return {
        name: (prompt, output)
        for name, (prompt, _, output) in page.raise_for_status().json()["finished"].items()
    }


def recorded_counts(stack: Stack, tenant: str) -> dict[str, Tokens]:
    """Of each request of a tenant."""
    return {name: (int(prompt), int(output)) for name, prompt, output in stack.sql(_RECORDED, tenant)}


def ledger_entries(stack: Stack, tenant: str) -> list[str]:
    """The requests of a tenant's entries, as often as they are there."""
    return [row[0] for row in stack.sql(_ENTRIES, tenant)]


def assert_recorded_as_counted(stack: Stack, tenant: str, ids: Collection[str]) -> None:
    """The ledger has these requests of a tenant and no others, each once, with what the engine counted."""
    wait_until(
        lambda: sorted(ledger_entries(stack, tenant)) == sorted(ids), "entry for each request", 30.0,
        instead=lambda: set(ledger_entries(stack, tenant)) ^ set(ids),
    )  # fmt: skip

    def as_counted() -> bool:
        counted = engine_counts(stack)
        return recorded_counts(stack, tenant) == {name: counted.get(name) for name in ids}

    wait_until(
        as_counted, "ledger that says what the engine says", 30.0,
        instead=lambda: (recorded_counts(stack, tenant), engine_counts(stack)),
    )  # fmt: skip
