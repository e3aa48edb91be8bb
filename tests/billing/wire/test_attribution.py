"""Who pays for each ending: always a balance, and the one rule of each."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.wire.attribution import Attribution, attribute, charged
from billing.wire.ending import BILLED_ENDINGS, CHARGED_UNBILLED, Ending, OtherReason
from billing.wire.tokens import AbsorbedTokens, Tokens
from tests.source_tree import text_of

NAME = re.compile(r"`(\w+)`")
COUNTS = st.integers(0, 10**9)
USAGE = st.builds(lambda cached, rest, output: Tokens(cached + rest, cached, output), COUNTS, COUNTS, COUNTS)
ENDINGS = st.sampled_from(list(Ending))


@given(ENDINGS, USAGE, COUNTS, st.sampled_from([None, "usage_missing", "usage_negative"]), st.booleans())
def test_every_ending_balances(
    ending: Ending, usage: Tokens, shared: int, anomaly: str | None, generates: bool
) -> None:
    share = attribute(ending, usage, shared_prompt=shared, anomaly=anomaly, generates=generates)
    assert share.produced.prompt == share.billed.prompt + share.absorbed.prompt
    assert share.produced.output == share.billed.output + share.absorbed.output
    if generates and usage.output == 0:
        assert share.produced == Tokens(0, 0, 0)
    else:
        assert share.produced == Tokens(usage.prompt + shared, usage.cached, usage.output)
    if share.billed != Tokens(0, 0, 0):
        assert anomaly is None
        assert ending in BILLED_ENDINGS


@pytest.mark.parametrize("ending", sorted(BILLED_ENDINGS))
def test_what_a_tenant_got_or_left_is_billed_to_the_token(ending: Ending) -> None:
    share = attribute(ending, Tokens(10, 4, 7))
    assert share.billed == share.produced == Tokens(10, 4, 7)
    assert share.absorbed.reasons == {}


@pytest.mark.parametrize("ending", sorted(set(Ending) - BILLED_ENDINGS - {Ending.REFUSED_BY_ENGINE}))
def test_nobody_pays_for_our_failure(ending: Ending) -> None:
    share = attribute(ending, Tokens(10, 4, 7))
    assert share.billed == Tokens(0, 0, 0)
    assert share.absorbed.reasons == {ending: AbsorbedTokens(10, 7)}


def test_the_readme_says_who_pays_for_each_ending() -> None:
    _, _, after = text_of("README.md").partition("## Who pays when a request ends early\n")
    rows = [row.split("|") for row in after.partition("\n#")[0].splitlines() if row.startswith("| `")]
    pays = [(name, what.strip() != "nothing") for _, names, what, *_ in rows for name in NAME.findall(names)]
    assert sorted(pays) == sorted((ending.value, ending in BILLED_ENDINGS) for ending in Ending)
    counts = {name for _, names, *_, why, _ in rows if "limits" in why for name in NAME.findall(names)}
    assert counts == CHARGED_UNBILLED


def test_a_prompt_shared_by_samples_is_billed_once() -> None:
    share = attribute(Ending.COMPLETE, Tokens(130, 0, 30), shared_prompt=260)
    assert share.produced.prompt == 390
    assert share.billed == Tokens(130, 0, 30)
    assert share.absorbed.reasons == {OtherReason.SHARED_PROMPT: AbsorbedTokens(260, 0)}


def test_a_shared_prompt_keeps_its_own_reason_when_we_failed() -> None:
    share = attribute(Ending.ENGINE_DIED, Tokens(10, 0, 3), shared_prompt=20)
    assert share.absorbed.reasons == {
        Ending.ENGINE_DIED: AbsorbedTokens(10, 3),
        OtherReason.SHARED_PROMPT: AbsorbedTokens(20, 0),
    }


def test_an_anomaly_is_kept_off_the_bill() -> None:
    share = attribute(Ending.COMPLETE, Tokens(10, 0, 3), anomaly="usage_backwards")
    assert share.billed == Tokens(0, 0, 0)
    assert share.absorbed.reasons == {OtherReason.USAGE_ANOMALY: AbsorbedTokens(10, 3)}


@pytest.mark.parametrize("ending", [ending for ending in Ending if ending is not Ending.REFUSED_BY_ENGINE])
def test_a_request_stopped_before_its_first_token_cost_nothing(ending: Ending) -> None:
    nothing = attribute(Ending.COMPLETE, Tokens(0, 0, 0))
    assert attribute(ending, Tokens(130, 20, 0), shared_prompt=260) == nothing
    assert nothing == Attribution(Tokens(0, 0, 0), Tokens(0, 0, 0), nothing.absorbed)


def test_a_route_without_output_bills_its_prompt() -> None:
    assert attribute(Ending.COMPLETE, Tokens(12, 0, 0), generates=False).billed == Tokens(12, 0, 0)


def test_what_an_engine_refused_after_it_had_worked_is_paid_by_nobody_and_counts_against_limits() -> None:
    nothing = attribute(Ending.REFUSED_BY_ENGINE, Tokens(0, 0, 0))
    assert (nothing.produced, charged(Ending.REFUSED_BY_ENGINE, nothing.produced, nothing.billed)) == (
        Tokens(0, 0, 0),
        Tokens(0, 0, 0),
    )
    late = attribute(Ending.REFUSED_BY_ENGINE, Tokens(10, 2, 3))
    assert (late.produced, late.billed) == (Tokens(10, 2, 3), Tokens(0, 0, 0))
    assert late.absorbed.reasons == {Ending.REFUSED_BY_ENGINE: AbsorbedTokens(10, 3)}
    assert charged(Ending.REFUSED_BY_ENGINE, late.produced, late.billed) == late.produced
    left = attribute(Ending.DEADLINE, Tokens(10, 2, 3))
    assert charged(Ending.DEADLINE, left.produced, left.billed) == left.billed == Tokens(0, 0, 0)


@pytest.mark.parametrize("ending", sorted(BILLED_ENDINGS))
def test_what_is_produced_again_is_billed_once(ending: Ending) -> None:
    share = attribute(ending, Tokens(10, 4, 7), discarded_output=3)
    assert share.billed == Tokens(10, 4, 4)
    assert share.absorbed.reasons == {OtherReason.CONTINUED: AbsorbedTokens(0, 3)}
    later = attribute(ending, Tokens(14, 4, 7), continued=True, discarded_output=7)
    assert later.billed == Tokens(0, 0, 0)
    assert later.absorbed.reasons == {OtherReason.CONTINUED: AbsorbedTokens(14, 7)}
    with pytest.raises(ValueError, match="8 tokens discarded of 7"):
        attribute(ending, Tokens(10, 4, 7), discarded_output=8)
