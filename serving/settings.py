"""The worker's settings: the only module of `serving` that reads the environment (`TAAS_…`, and what an
engine inherits).
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """How a worker runs its engine. Every field is also an environment variable, `TAAS_` before its name."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", frozen=True, extra="ignore")

    home: Path = Path(".taas")
    # Which OS user of this machine is which private model's, for all homes.
    private_users: Path = Path("/var/lib/taas/private-users")
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6390/0")

    vllm: Literal["cpu", "gpu"] = "cpu"
    vllm_python: Path = Path(".venv-vllm/bin/python")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    # CPU only: GiB for the KV cache. One holds 46,592 tokens of the default model.
    kv_cache_gib: Annotated[int, Field(ge=1)] = 1

    # LoRA adapters that the engine holds at once (none: it is started without), and their largest rank; each
    # takes memory of that rank.
    adapters: Annotated[int, Field(ge=0, le=1024)] = 0
    adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 16

    # Whether gateways are told what the engine's prefix cache has lost, instead of guessing.
    cache_events: bool = False

    # Where the engine and the worker's metrics listen, and the address that gateways are given.
    worker_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    engine_port_first: Annotated[int, Field(ge=1024, le=65_000)] = 8100
    worker_metrics_port_first: Annotated[int, Field(ge=1024, le=65_000)] = 9110

    # How long the instance is believed to live without being renewed, which happens every second.
    presence_s: Annotated[float, Field(ge=2, le=60)] = 5

    # Large models load for many minutes; a start that is really stuck should still be told.
    engine_start_timeout_s: Annotated[float, Field(gt=0)] = 1800
    # How long requests in flight may take to finish after SIGTERM, and then how long vLLM itself may finish
    # what is left.
    drain_s: Annotated[float, Field(ge=0)] = 60
    engine_shutdown_timeout_s: Annotated[int, Field(ge=0)] = 5


class LauncherSettings(BaseSettings):
    """How a launcher runs workers. These get the launcher's environment, and so its settings of workers."""

    model_config = SettingsConfigDict(env_prefix="TAAS_", frozen=True, extra="ignore")

    launcher: Literal["local", "ray"] = "local"
    home: Path = Path(".taas")
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6390/0")
    # Admin APIs, with commas between them, and the key that may read there.
    admin_url: Annotated[str, Field(min_length=1)] = "http://127.0.0.1:8001"
    service_key: SecretStr
    # Of a Ray cluster; `auto`: the one that this machine belongs to.
    ray_address: Annotated[str, Field(min_length=1)] = "auto"
    # Replaced instances are missed for this long at most.
    presence_s: Annotated[float, Field(ge=2, le=60)] = 3


def inherited_environment() -> dict[str, str]:
    """What the worker itself was started with: the base of an engine's environment."""
    return dict(os.environ)
