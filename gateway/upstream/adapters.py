"""Which adapter serves an instance."""

from collections.abc import Mapping
from typing import Final

from billing.wire.engine_kinds import VLLM
from billing.wire.instance_entry import InstanceEntry
from gateway.upstream import vllm
from gateway.upstream.engine_adapter import EngineAdapter

# By the kind of engine that an instance's entry names.
ADAPTERS: Final[Mapping[str, EngineAdapter]] = {VLLM: vllm}


def adapter_of(instance: InstanceEntry) -> EngineAdapter:
    """The adapter of an instance whose kind this process knows; `gateway.route` chooses no other."""
    return ADAPTERS[instance.engine]
