"""Who pays: one rule for every ending, used by each settle and each crash event. Pure.

The engine's usage counts a prompt once, its counters count it once per sample (`n` > 1). The surplus is
`shared_prompt`, which the caller passes and nobody pays. A request that stopped before its first token has
moved no counter, though its usage names the prompt.
"""

from typing import Final

from billing.wire.ending import BILLED_ENDINGS, CHARGED_UNBILLED, Ending, OtherReason
from billing.wire.tokens import Absorbed, AbsorbedTokens, Tokens
from billing.wire.value import Value

_NOTHING: Final = Tokens(0, 0, 0)
_NOTHING_ABSORBED: Final = Absorbed(0, 0, {})


class Attribution(Value, frozen=True):
    """produced = billed + absorbed, for the prompt and for the output."""

    produced: Tokens
    billed: Tokens
    absorbed: Absorbed


def attribute(
    ending: Ending,
    usage: Tokens,
    *,
    shared_prompt: int = 0,
    anomaly: str | None = None,
    generates: bool = True,
    continued: bool = False,
    discarded_output: int = 0,
) -> Attribution:
    """Divide `usage`, the engine's cumulative figures, into billed and absorbed.

    `generates` is false on routes without output (embeddings): there the prompt alone is the product.
    `continued`: a later part of a preempted request. Its prompt is the first part's prompt and text, which
    the engine had to read again for our sake: it is not billed. Neither is `discarded_output`: output of a
    preempted part that its caller did not get and that the next part produces again.
    """
    if not 0 <= discarded_output <= usage.output:
        raise ValueError(f"{discarded_output} tokens discarded of {usage.output}")
    if shared_prompt < 0:
        raise ValueError(f"a negative shared prompt: {shared_prompt}")
    if generates and usage.output == 0:
        return Attribution(_NOTHING, _NOTHING, _NOTHING_ABSORBED)
    billable = anomaly is None and ending in BILLED_ENDINGS
    if billable and not (shared_prompt or discarded_output or continued):  # nearly every request
        return Attribution(usage, usage, _NOTHING_ABSORBED)
    produced = Tokens(usage.prompt + shared_prompt, usage.cached, usage.output, usage.written)
    billed, reasons = usage, dict[str, AbsorbedTokens]()
    if not billable:
        reason = ending if anomaly is None else OtherReason.USAGE_ANOMALY
        billed = _NOTHING
        if usage.prompt or usage.output:
            reasons[reason] = AbsorbedTokens(usage.prompt, usage.output)
    elif discarded_output or (continued and usage.prompt):
        read = _NOTHING if continued else usage
        prompt = read.prompt
        billed = Tokens(prompt, read.cached, usage.output - discarded_output, read.written)
        reasons[OtherReason.CONTINUED] = AbsorbedTokens(usage.prompt - prompt, discarded_output)
    if shared_prompt:
        reasons[OtherReason.SHARED_PROMPT] = AbsorbedTokens(shared_prompt, 0)
    absorbed = Absorbed(produced.prompt - billed.prompt, produced.output - billed.output, reasons)
    return Attribution(produced, billed, absorbed)


def charged(ending: Ending, produced: Tokens, billed: Tokens, *, untold: bool = False) -> Tokens:
    """The tokens that count against the tenant's limits. `untold`: a provider has not said what it used, and
    `produced` is our own count. That is no bill, but a limit that did not count it could be left behind.
    """
    if ending in CHARGED_UNBILLED or (untold and ending in BILLED_ENDINGS):
        return produced
    return billed
