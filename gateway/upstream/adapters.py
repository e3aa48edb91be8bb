"""Which adapter serves an instance."""

from collections.abc import Mapping
from typing import Final

from billing.wire.engine_kinds import ANTHROPIC, OPENAI, VLLM
from billing.wire.instance_entry import InstanceEntry
from gateway.upstream import anthropic_api, openai_api, vllm
from gateway.upstream.engine_adapter import EngineAdapter

# By the kind of engine that an instance's entry names.
ADAPTERS: Final[Mapping[str, EngineAdapter]] = {VLLM: vllm, OPENAI: openai_api, ANTHROPIC: anthropic_api}


def adapter_of(instance: InstanceEntry) -> EngineAdapter:
    """The adapter of an instance whose kind this process knows; the catalogue offers no other."""
    return ADAPTERS[instance.engine]
