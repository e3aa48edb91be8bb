"""The fields of a reservation in Redis: their names in code, and their stored names. It owns names only.

The cell's scripts get this table, so that each field is spelled once. A stored name must not change:
processes of two versions work on the same reservations during an upgrade.
"""

from typing import Final

FIELDS: Final = {
    # waiting | granted | open | settled. A settled one only keeps `event` and `ended_by`.
    "state": "state",
    # JSON: the head of the usage event, and the crash event, its tail if the gateway dies now.
    "head": "head",
    "crash_event": "will",
    # Milliunits: held while it waits; charged and used so far while it is open; for prefilling its prompt.
    "cost_mu": "cost",
    "charged_mu": "charged",
    "used_mu": "used",
    # Tokens charged: the prompt and all that it may produce, until it ends.
    "charged_tokens": "tok",
    "prompt_mu": "pmu",
    # While it waits: where its prompt should be cached, and the work that this saves.
    "prefers": "pref",
    "cached_mu": "cmu",
    # Tokens at the last checkpoint.
    "prompt": "p",
    "cached": "c",
    "output": "o",
    "delivered": "d",
    # The end of its lease in ms, and when it was admitted.
    "lease": "lease",
    "admitted_ms": "at",
    # Its tenant and gateway, and the buckets of its limits.
    "tenant": "ten",
    "gateway": "gw",
    "tenant_bucket": "tb",
    "key_bucket": "kb",
    # r (reserved) | o (on-demand) | f (flex), and why so.
    "class": "cls",
    "why": "why",
    # The contract's id ('' = none), the key that is charged for it, whether it spilled over it ('1'), its
    # tenant's weight.
    "contract": "cid",
    "contract_key": "qb",
    "spilled": "spl",
    "weight": "wt",
    # Where it runs ('' = it was preempted and holds no slot), and its number of sequences there.
    "instance": "inst",
    "epoch": "epoch",
    "sequences": "seq",
    # Rounds of the allocator since it was first asked to give its slot up.
    "preempt_rounds": "asked",
    # The id of its entry in the usage stream, and the script that ended it.
    "event": "event",
    "ended_by": "by",
}


def stored(*names: str) -> list[str]:
    """The stored names of these fields, for a command that reads them."""
    return [FIELDS[name] for name in names]
