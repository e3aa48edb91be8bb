"""The command line and environment of a vLLM server, from a model's entry and the worker's options. Pure: it
starts nothing.

Checked against vLLM 0.32. Whatever the operator adds, it keeps the worker's address, the instance's own key
(in the environment, where `ps` does not show it), abort by id, exact usage, and no prompt in any log.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from serving.served_model import ServedModel

# vLLM's own logging, less the loggers that write the errors of callers' requests: those quote parameters, and
# so parts of prompts. And less one that warns at each request for a score.
LOGGING_CONFIG: Final = Path(__file__).with_name("vllm_logging.json")
# What vLLM itself does not say: the tokens of each request, by its id. The folder holds that module alone.
REQUEST_COUNTS: Final = "taas_request_counts.RequestCounts"
REQUEST_COUNTS_FOLDER: Final = Path(__file__).with_name("vllm_middleware")

# Flags whose value other parts rely on. An engine argument that sets one of them is refused instead of
# silently winning or losing.
OWNED_FLAGS: Final = frozenset(
    {
        "--model", "--served-model-name", "--host", "--port", "--api-key", "--uds", "--config",
        "--max-model-len", "--scheduling-policy", "--shutdown-timeout", "--enable-scale-out",
        "--enable-prompt-tokens-details", "--enable-log-requests", "--enable-log-outputs",
        "--disable-log-stats", "--disable-uvicorn-access-log", "--log-error-stack", "--runner",
        "--enable-lora", "--max-loras", "--max-cpu-loras", "--max-lora-rank", "--lora-modules",
        "--kv-events-config",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSlots:
    """How many adapters an engine holds at once, and of what rank at most."""

    count: int = 0
    rank_max: int = 16


NO_ADAPTERS: Final = AdapterSlots()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the worker decides about its engine. `private_environment`: where a private model's engine keeps
    what it writes.
    """

    python: Path
    model_path: Path
    host: str
    port: int
    gpu: bool
    gpu_memory_utilization: float
    kv_cache_gib: int
    shutdown_timeout_s: int
    dtype: str | None = None
    adapters: AdapterSlots = NO_ADAPTERS
    cache_socket: Path | None = None
    engine_args: tuple[str, ...] = ()
    private_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What to start. The environment holds the engine's key, so it is in no repr. `user`: of its processes,
    None for the worker's own. `folder`: where it starts, None for where the worker is.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    user: int | None = None
    folder: Path | None = None


def build_command(
    model: ServedModel, options: EngineOptions, key: str, inherited: Mapping[str, str]
) -> EngineCommand:
    """`inherited` is the worker's own environment. ValueError when an engine argument sets what the worker
    owns.
    """
    check_engine_args(options.engine_args)
    argv = [
        str(options.python), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(options.model_path),
        "--served-model-name", model.engine_model,
        "--host", options.host,
        "--port", str(options.port),
        "--max-model-len", str(model.context_tokens),
        "--enable-scale-out",
        "--scheduling-policy", "priority",
        "--enable-prompt-tokens-details",
        "--middleware", REQUEST_COUNTS,
        "--shutdown-timeout", str(options.shutdown_timeout_s),
        "--no-enable-log-requests",
        "--no-enable-log-outputs",
        "--disable-uvicorn-access-log",
        "--uvicorn-log-level", "warning",
        "--disable-fastapi-docs",
    ]  # fmt: skip
    if not model.generates:
        argv += ["--runner", "pooling"]
    if options.adapters.count:
        # Those that it holds stay loaded, so that it never reads their files again: they may have changed.
        count = str(options.adapters.count)
        argv += ["--enable-lora", "--max-loras", count, "--max-cpu-loras", count]
        argv += ["--max-lora-rank", str(options.adapters.rank_max)]
    if options.cache_socket is not None:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"ipc://{options.cache_socket}",
        }
        argv += ["--kv-events-config", json.dumps(events)]
    if options.gpu:
        argv += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    else:
        argv += ["--enforce-eager"]
    if options.dtype is not None:
        argv += ["--dtype", options.dtype]
    argv += options.engine_args
    return EngineCommand(tuple(argv), _environment(options, key, inherited))


def check_engine_args(engine_args: tuple[str, ...]) -> None:
    """ValueError if one of them sets what the worker owns, in any spelling that argparse accepts for it."""
    for argument in engine_args:
        if not argument.startswith("--"):
            continue
        flag = argument.partition("=")[0].replace("_", "-")
        positive = "--" + flag.removeprefix("--no-") if flag.startswith("--no-") else flag
        # argparse takes an unambiguous beginning of a flag for the flag.
        if positive in OWNED_FLAGS or any(
            len(positive) > 4 and owned.startswith(positive) for owned in OWNED_FLAGS
        ):
            raise ValueError(
                f"engine argument {argument.partition('=')[0]} is set by the worker itself; leave it out"
            )


def _environment(options: EngineOptions, key: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The engine gets none of our own settings, because they hold the admin key and the address of the
    ledger.
    """
    env = {name: value for name, value in inherited.items() if not name.startswith("TAAS_")}
    paths = [str(REQUEST_COUNTS_FOLDER), *filter(None, [env.get("PYTHONPATH")])]
    env |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_API_KEY": key,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # DEBUG would log prompts, and the other one whole responses.
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "False",
        "VLLM_LOGGING_CONFIG_PATH": str(LOGGING_CONFIG),
        # It opens endpoints that put the engine to sleep or reset its caches, without a key.
        "VLLM_SERVER_DEV_MODE": "0",
        "PYTHONUNBUFFERED": "1",
        # Loading adapters, by whoever has the engine's key.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1" if options.adapters.count else "0",
    }
    if not options.gpu:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_cache_gib)
        # --enforce-eager spares some functions. The first request for log probabilities would have one of
        # them compiled, and every stream would stand still for a quarter of a minute.
        env.setdefault("TORCHDYNAMO_DISABLE", "1")
    env.update(options.private_environment)
    return env
