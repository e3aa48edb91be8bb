"""Which meter reads a request's answer. Pure."""

from gateway.request import AnswerForm, ParsedRequest
from gateway.stream.meter import Meter
from gateway.stream.meter_choices import ChoicesMeter
from gateway.stream.meter_plain import PlainMeter
from gateway.stream.meter_typed import MessagesMeter, ResponsesMeter


def meter_for(parsed: ParsedRequest, tier: bytes | None = None) -> Meter:
    """A new meter for one attempt of this request. `tier`: the class that serves it, if that is known
    already.
    """
    meter = _fresh(parsed)
    meter.model, meter.tier = parsed.model, tier
    return meter


def _fresh(parsed: ParsedRequest) -> Meter:
    if not parsed.stream:
        return PlainMeter(parsed.route.answer, parsed.samples, parsed.prompts, parsed.max_output_tokens)
    if parsed.route.answer is AnswerForm.MESSAGE:
        return MessagesMeter(parsed.max_output_tokens)
    if parsed.route.answer is AnswerForm.RESPONSE:
        return ResponsesMeter(parsed.max_output_tokens)
    return ChoicesMeter(
        parsed.samples,
        parsed.prompts,
        parsed.max_output_tokens,
        parsed.wants_usage,
        parsed.wants_continuous_usage,
    )
