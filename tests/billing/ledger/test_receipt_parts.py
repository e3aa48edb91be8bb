"""A request that was preempted and resumed has one receipt, whose counts are the sums of its parts."""

from functools import reduce
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from billing.ledger.receipt_parts import Receipt, merge_parts
from billing.wire.ending import Ending
from tests.billing.events import event

TOKENS = st.builds(lambda cached, rest, output: (cached + rest, cached, output), *[st.integers(0, 1000)] * 3)
PART = st.tuples(TOKENS, st.sampled_from([Ending.COMPLETE, Ending.PREEMPTED, Ending.ENGINE_DIED]))


def counts(facts: dict[str, Any]) -> dict[str, int]:
    """Each count by its place; a reason that is not there has none."""
    found = {name: facts[name] for name in ("units_mu", "waited_ms")}
    for name in ("produced", "delivered", "billed"):
        found |= {f"{name}.{kind}": count for kind, count in facts[name].items()}
    absorbed = facts["absorbed"]
    found |= {f"absorbed.{kind}": absorbed[kind] for kind in ("prompt", "output")}
    for reason, tokens in absorbed["reasons"].items():
        found |= {f"absorbed.{reason}.{kind}": count for kind, count in tokens.items()}
    return found


@given(st.lists(PART, min_size=2, max_size=4))
def test_the_counts_of_the_parts_add_up(parts: list[tuple[tuple[int, int, int], Ending]]) -> None:
    ended = [
        orjson.loads(event(f"a-{number}", tokens, ending).to_json())
        for number, (tokens, ending) in enumerate(parts)
    ]
    merged = dict(merge_parts([Receipt("settled", facts) for facts in ended]).facts)
    each = [counts(facts) for facts in ended]
    places = reduce(set.union, map(set, each))
    assert counts(merged) == {place: sum(part.get(place, 0) for part in each) for place in places}
    assert merged["ending"] == ended[-1]["ending"]
    assert {name: merged[name] for name in ("request_id", "started_ms", "samples")} == {
        name: ended[0][name] for name in ("request_id", "started_ms", "samples")
    }


def test_a_part_that_is_open_adds_what_is_known_of_it() -> None:
    first = orjson.loads(event("a", (10, 4, 5), Ending.PREEMPTED).to_json())
    running = {"request_id": "a-2", "produced": {"prompt": 15, "cached": 0, "output": 2},
               "delivered": {"output": 2}}  # fmt: skip
    merged = merge_parts([Receipt("settled", first), Receipt("open", running)])
    assert (merged.state, merged.amount) == ("open", None)
    assert merged.facts["produced"] == {"prompt": 25, "cached": 4, "output": 7}
    assert merged.facts["absorbed"] == first["absorbed"]
