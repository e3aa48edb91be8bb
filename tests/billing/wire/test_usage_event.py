"""The usage event: a balance at construction, JSON both ways, a strict reader."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from billing.wire.attribution import attribute
from billing.wire.ending import AbsorbReason, Ending, OtherReason
from billing.wire.tokens import Absorbed, AbsorbedTokens, Delivered, Tokens, UsageEventError, Weights
from billing.wire.usage_event import CapacityClass, EventHead, UsageEvent, UsageSource

HEAD = EventHead(
    request_id="req-1", tenant="acme", project="p", key_id="k", model='org/m "x" ü', pool="pool", cell="cell",
    instance="i", epoch="e",
    route="chat", stream=True, class_=CapacityClass.ON_DEMAND, contract=None, weights=Weights(1, 1000, 100,
    4000), samples=2,
    started_ms=1_780_000_000_123, gateway="g",
)  # fmt: skip
COUNTS = st.integers(0, 2**53)


def event(
    ending: Ending = Ending.COMPLETE, usage: Tokens | None = None, shared: int = 0, anomaly: str | None = None
) -> UsageEvent:
    share = attribute(ending, usage or Tokens(10, 4, 7), shared_prompt=shared, anomaly=anomaly)
    return UsageEvent(
        **asdict(HEAD), ending=ending, usage_source=UsageSource.ENGINE, anomaly=anomaly,
        produced=share.produced, billed=share.billed, absorbed=share.absorbed, units_mu=34_400,
        http_status=200, ended_ms=1_780_000_001_456, first_token_ms=1_780_000_000_456, waited_ms=3,
        delivered=Delivered(7),
    )  # fmt: skip


@given(
    st.sampled_from([ending for ending in Ending if ending is not Ending.REFUSED_BY_ENGINE]),
    st.builds(lambda cached, rest, output: Tokens(cached + rest, cached, output), COUNTS, COUNTS, COUNTS),
    COUNTS,
    st.sampled_from([None, "usage_missing"]),
)
def test_an_event_reads_back_as_it_was_written(
    ending: Ending, usage: Tokens, shared: int, anomaly: str | None
) -> None:
    written = event(ending, usage, shared, anomaly)
    assert UsageEvent.from_json(written.to_json()) == written


def test_an_orphan_says_so_and_reads_back() -> None:
    orphan = replace(event(), orphan=True)
    assert UsageEvent.from_json(orphan.to_json()) == orphan


def test_head_and_crash_event_join_at_their_braces() -> None:
    joined = HEAD.to_json()[:-1] + b"," + event().crash_event_json()[1:-1] + b',"ended_ms":1780000001456}'
    assert UsageEvent.from_json(joined) == event()


@given(
    st.dictionaries(
        st.sampled_from(["tenant", "model", "request_id", "instance", "gateway"]),
        st.one_of(st.sampled_from(['"request_id":1', '","first_token_ms":0,"x":"', "\\"]), st.text()),
    )
)
def test_what_the_scripts_join_is_the_event_whatever_its_texts_hold(texts: dict[str, str]) -> None:
    head, whole = replace(HEAD, **texts), replace(event(), **texts)
    decided = {"class": "on_demand", "contract": None, "instance": whole.instance, "epoch": whole.epoch}
    parts = [head.admission_json(), orjson.dumps(decided), whole.crash_event_json()]
    joined = b"{" + b",".join(part[1:-1] for part in parts) + b',"ended_ms":1780000001456}'
    assert UsageEvent.from_json(joined) == whole
    assert not {"class", "contract", "instance", "epoch"} & set(orjson.loads(head.admission_json()))


def test_the_fields_are_those_of_the_contract() -> None:
    fields = orjson.loads(event(shared=10).to_json())
    assert fields["v"] == 1
    assert fields["class"] == "on_demand"
    assert fields["weights"] == {"version": 1, "w_in_mu": 1000, "w_cached_mu": 100, "w_out_mu": 4000}
    assert fields["produced"] == {"prompt": 20, "cached": 4, "output": 7}
    assert fields["delivered"] == {"output": 7}
    assert fields["absorbed"] == {
        "prompt": 10,
        "output": 0,
        "reasons": {"shared_prompt": {"prompt": 10, "output": 0}},
    }


def test_names_of_ignored_fields_are_there_only_where_something_was_ignored() -> None:
    assert b"ignored" not in event().to_json()
    told = replace(event(), ignored=("tools[0]", "seed"))
    assert UsageEvent.from_json(told.to_json()) == told
    assert orjson.loads(told.crash_event_json())["ignored"] == ["tools[0]", "seed"]


def test_unknown_fields_are_ignored() -> None:
    fields = orjson.loads(event().to_json()) | {"added_later": {"x": 1}}
    assert UsageEvent.from_json(orjson.dumps(fields)) == event()


@pytest.mark.parametrize("missing", sorted(set(orjson.loads(event().to_json())) - {"decision"}))
def test_a_missing_field_is_refused(missing: str) -> None:
    fields = orjson.loads(event().to_json())
    del fields[missing]
    with pytest.raises(UsageEventError):
        UsageEvent.from_json(orjson.dumps(fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("produced", {"prompt": -1, "cached": 0, "output": 7}),
        ("produced", {"prompt": 10.0, "cached": 0, "output": 7}),
        ("produced", {"prompt": True, "cached": 0, "output": 7}),
        ("produced", {"prompt": 10, "cached": 11, "output": 7}),
        ("produced", {"prompt": 10, "output": 7}),
        ("absorbed", {"prompt": 0, "output": 0}),
        ("weights", {"version": 1, "w_in_mu": 1000, "w_cached_mu": 100}),
        ("decision", []),
        ("ignored", [1]),
        ("produced", {"prompt": 11, "cached": 4, "output": 7}),
        ("billed", {"prompt": 10, "cached": 4, "output": 6}),
        ("billed", {"prompt": 10, "cached": 5, "output": 7}),
        ("absorbed", {"prompt": 0, "output": 0, "reasons": {"deadline": {"prompt": 1, "output": 0}}}),
        ("absorbed", {"prompt": 0, "output": 0, "reasons": {"because": {"prompt": 0, "output": 0}}}),
        ("absorbed", {"prompt": 0, "output": 0, "reasons": []}),
        ("delivered", {"output": -1}),
        ("delivered", None),
        ("units_mu", -1),
        ("units_mu", "1"),
        ("ended_ms", None),
        ("samples", 1.5),
        ("stream", 1),
        ("tenant", None),
        ("ending", "vanished"),
        ("usage_source", "guess"),
        ("class", "gold"),
        ("weights", {"version": 1, "w_in_mu": -5, "w_cached_mu": 0, "w_out_mu": 0}),
        ("v", 2),
    ],
)
def test_a_wrong_field_is_refused(field: str, value: Any) -> None:
    fields = orjson.loads(event().to_json()) | {field: value}
    with pytest.raises(UsageEventError):
        UsageEvent.from_json(orjson.dumps(fields))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b'"x"', b"\xff", b"{}"])
def test_what_is_not_an_event_is_refused(text: bytes) -> None:
    with pytest.raises(UsageEventError):
        UsageEvent.from_json(text)


def test_an_event_out_of_balance_cannot_be_made() -> None:
    with pytest.raises(UsageEventError, match="balance"):
        replace(event(), billed=Tokens(9, 4, 7))
    with pytest.raises(UsageEventError, match="balance"):
        replace(event(), billed=Tokens(10, 4, 8))


def test_absorbed_tokens_have_reasons_that_add_up() -> None:
    with pytest.raises(UsageEventError, match="reasons"):
        Absorbed(3, 0, {Ending.DEADLINE: AbsorbedTokens(2, 0)})


def test_negative_tokens_cannot_be_made() -> None:
    for wrong in [(-1, 0, 0), (0, 0, -1), (3, 4, 0)]:
        with pytest.raises(UsageEventError):
            Tokens(*wrong)


def test_cost_weighs_cached_input_apart() -> None:
    assert HEAD.weights.cost_mu(Tokens(10, 4, 7)) == 6 * 1000 + 4 * 100 + 7 * 4000


@given(st.sampled_from([*Ending, *OtherReason]), COUNTS, COUNTS)
def test_tokens_may_be_absorbed_for_any_ending_and_any_other_reason(
    reason: AbsorbReason, prompt: int, output: int
) -> None:
    absorbed = Absorbed(prompt, output, {reason: AbsorbedTokens(prompt, output)})
    nothing = Tokens(0, 0, 0)
    written = replace(event(), produced=Tokens(prompt, 0, output), billed=nothing, absorbed=absorbed)
    assert UsageEvent.from_json(written.to_json()) == written


def test_an_ending_by_its_earlier_name_is_read_as_the_new_one() -> None:
    parts = event(Ending.PREEMPTED).to_json()
    assert parts.count(b'"preempted"') == 2
    read = UsageEvent.from_json(parts.replace(b'"preempted"', b'"gave_way"'))
    assert read.ending is Ending.PREEMPTED
    assert list(read.absorbed.reasons) == [Ending.PREEMPTED]
    written = orjson.loads(read.to_json())
    assert (written["ending"], list(written["absorbed"]["reasons"])) == ("preempted", ["preempted"])
