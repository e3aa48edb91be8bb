"""One reading of an engine's `/metrics`. Pure; it does not know how the text was fetched."""

from dataclasses import dataclass

from billing.wire import vllm_metrics
from billing.wire.instance_entry import EngineLoad
from billing.wire.tokens import CounterPair


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One reading of an engine."""

    load: EngineLoad
    counters: CounterPair

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits, so the counters do not change."""
        return self.load.running == 0 and self.load.waiting == 0


def parse_metrics(text: str) -> EngineReading:
    """Read the exposition text. Several engine cores behind one server are added up (KV usage: the fullest
    one). ValueError if a metric is missing (a missing counter is not zero) or is not a number.
    """
    page = vllm_metrics.read_page(text)
    if page.missing or page.counters is None:
        raise ValueError(f"the engine's metrics lack {', '.join(page.missing)}")
    return EngineReading(page.load, page.counters)
