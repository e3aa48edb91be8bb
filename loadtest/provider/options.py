"""What a scripted provider is started with."""

from dataclasses import dataclass

from loadtest.engine.options import EngineOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions(EngineOptions):
    """`dialect`: `openai` or `anthropic`."""

    dialect: str
