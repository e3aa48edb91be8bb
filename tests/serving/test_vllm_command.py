"""Promises of the command line that starts an engine."""

from dataclasses import replace
from pathlib import Path

import pytest

from billing.wire.routes import POOLING_ROUTES, TEXT_ROUTES
from serving.served_model import ServedModel
from serving.vllm_command import LOGGING_CONFIG, EngineOptions, build_command

MODEL = ServedModel(
    name="m", pool="m", cell="m", engine_model="m-engine", context_tokens=4096, routes=frozenset({"chat"})
)
OPTIONS = EngineOptions(
    python=Path("/env/bin/python"),
    model_path=Path("/models/m"),
    host="10.0.0.5",
    port=8107,
    gpu=False,
    gpu_memory_utilization=0.8,
    kv_cache_gib=2,
    shutdown_timeout_s=5,
)
KEY = "random-engine-key"


def _value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_engine_listens_on_the_workers_address_only_and_serves_the_entry() -> None:
    argv = build_command(MODEL, OPTIONS, KEY, {}).argv
    assert argv[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert _value(argv, "--host") == "10.0.0.5"
    assert _value(argv, "--port") == "8107"
    assert _value(argv, "--model") == "/models/m"
    assert _value(argv, "--served-model-name") == "m-engine"
    assert _value(argv, "--max-model-len") == "4096"
    assert _value(argv, "--shutdown-timeout") == "5"


def test_what_metering_relies_on_is_always_on() -> None:
    argv = build_command(MODEL, OPTIONS, KEY, {}).argv
    assert "--enable-scale-out" in argv
    assert _value(argv, "--middleware") == "taas_request_counts.RequestCounts"
    assert "--enable-prompt-tokens-details" in argv
    assert _value(argv, "--scheduling-policy") == "priority"
    assert "--disable-log-stats" not in argv, "without statistics there are no counters"


def test_the_number_format_is_the_models_unless_it_is_given_and_the_operators_word_is_the_last() -> None:
    assert "--dtype" not in build_command(MODEL, OPTIONS, KEY, {}).argv
    options = replace(OPTIONS, dtype="float32", engine_args=("--dtype", "half"))
    argv = build_command(MODEL, options, KEY, {}).argv
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--dtype"] == ["float32", "half"]


def test_the_key_is_in_the_environment_and_nowhere_that_ps_or_a_repr_shows() -> None:
    command = build_command(MODEL, OPTIONS, KEY, {})
    assert command.env["VLLM_API_KEY"] == KEY
    assert KEY not in " ".join(command.argv)
    assert KEY not in repr(command)


def test_no_prompt_and_no_request_reaches_a_log() -> None:
    command = build_command(
        MODEL, OPTIONS, KEY, {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true"}
    )
    assert {"--no-enable-log-requests", "--no-enable-log-outputs", "--disable-uvicorn-access-log"} <= set(
        command.argv
    )
    assert command.env["VLLM_LOGGING_LEVEL"] == "INFO"
    assert command.env["VLLM_DEBUG_LOG_API_SERVER_RESPONSE"] == "False"
    assert command.env["VLLM_LOGGING_CONFIG_PATH"] == str(LOGGING_CONFIG)
    assert LOGGING_CONFIG.exists()


def test_our_own_settings_are_not_handed_to_the_engine() -> None:
    env = build_command(
        MODEL, OPTIONS, KEY, {"TAAS_ADMIN_KEY": "x", "TAAS_DATABASE_URL": "y", "PATH": "/bin"}
    ).env
    assert not [name for name in env if name.startswith("TAAS_")]
    assert env["PATH"] == "/bin"


def test_the_engine_calls_nobody() -> None:
    env = build_command(MODEL, OPTIONS, KEY, {}).env
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"]) == ("1", "1", "1")


def test_cpu_and_gpu_get_their_own_flags() -> None:
    cpu = build_command(MODEL, OPTIONS, KEY, {})
    gpu = build_command(MODEL, replace(OPTIONS, gpu=True), KEY, {})
    assert "--enforce-eager" in cpu.argv
    assert cpu.env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert cpu.env["TORCHDYNAMO_DISABLE"] == "1", "else a request for log probabilities stops all streams"
    theirs = {"TORCHDYNAMO_DISABLE": "0"}
    assert build_command(MODEL, OPTIONS, KEY, theirs).env["TORCHDYNAMO_DISABLE"] == "0"
    assert "--enforce-eager" not in gpu.argv
    assert _value(gpu.argv, "--gpu-memory-utilization") == "0.8"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "TORCHDYNAMO_DISABLE"} & gpu.env.keys()


def test_engine_arguments_are_passed_on_as_they_are() -> None:
    options = replace(OPTIONS, engine_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"))
    assert build_command(MODEL, options, KEY, {}).argv[-3:] == options.engine_args


@pytest.mark.parametrize(
    "argument",
    [
        "--host", "--host=0.0.0.0", "--api-key", "--api-k", "--enable_log_requests", "--enable-log-requests",
        "--no-enable-scale-out", "--max-model-len=9", "--disable-log-stats", "--runner=pooling",
    ],
)  # fmt: skip
def test_an_engine_argument_that_takes_over_what_the_worker_sets_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="set by the worker"):
        build_command(MODEL, replace(OPTIONS, engine_args=(argument,)), KEY, {})


def test_an_embedding_model_is_told_from_one_that_writes_and_its_engine_pools() -> None:
    assert MODEL.generates
    assert "--runner" not in build_command(MODEL, OPTIONS, KEY, {}).argv
    embeds = replace(MODEL, routes=frozenset({"embeddings"}))
    assert not embeds.generates
    assert _value(build_command(embeds, OPTIONS, KEY, {}).argv, "--runner") == "pooling"
    assert embeds.pooling_part() is embeds


def test_a_model_that_does_both_has_a_part_for_an_engine_that_pools() -> None:
    both = replace(MODEL, routes=frozenset({"chat", "embeddings", "score", "tokenize"}))
    part = both.pooling_part()
    assert both.generates
    assert both.engine_routes == set(TEXT_ROUTES)
    assert (part.generates, part.routes) == (False, {"embeddings", "score"})
    assert part.engine_routes == set(POOLING_ROUTES)
    assert (part.name, part.cell, part.pool) == (both.name, both.cell, f"{both.pool}/pooling")
    with pytest.raises(ValueError, match="offers no route"):
        replace(MODEL, routes=frozenset({"chat", "tokenize"})).pooling_part()


def test_the_engine_finds_our_middleware_before_what_the_operator_has_on_the_path() -> None:
    environment = build_command(MODEL, OPTIONS, KEY, {"PYTHONPATH": "/theirs"}).env
    ours, theirs = environment["PYTHONPATH"].split(":")
    assert (Path(ours) / "taas_request_counts.py").exists()
    assert theirs == "/theirs"
