"""The engine's /metrics, under vLLM's names and labels. Only what is counted here is listed."""

from loadtest.engine.options import EngineOptions
from loadtest.engine.scheduler import Scheduler


def render(options: EngineOptions, scheduler: Scheduler, started_s: float) -> bytes:
    """Prometheus text."""
    counters = scheduler.counters
    label = f'engine="0",model_name="{options.model}"'
    lines = ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {started_s!r}"]

    def series(name: str, kind: str, value: float, labels: str = label) -> None:
        family = f"# TYPE {name} {kind}"
        if family not in lines:
            lines.append(family)
        lines.append(f"{name}{{{labels}}} {float(value)!r}")

    waiting = scheduler.waiting
    series("vllm:num_requests_running", "gauge", scheduler.running)
    series("vllm:num_requests_waiting", "gauge", waiting)
    series("vllm:num_requests_waiting_by_reason", "gauge", waiting, f'{label},reason="capacity"')
    series("vllm:num_requests_waiting_by_reason", "gauge", 0, f'{label},reason="deferred"')
    series("vllm:kv_cache_usage_perc", "gauge", scheduler.kv_usage)
    series("vllm:prefix_cache_queries_total", "counter", counters.prompt_tokens)
    series("vllm:prefix_cache_hits_total", "counter", counters.cached_tokens)
    series("vllm:num_preemptions_total", "counter", counters.preemptions)
    series("vllm:prompt_tokens_total", "counter", counters.prompt_tokens)
    series("vllm:prompt_tokens_created", "gauge", started_s)
    series("vllm:prompt_tokens_cached_total", "counter", counters.cached_tokens)
    series("vllm:generation_tokens_total", "counter", counters.generation_tokens)
    series("vllm:generation_tokens_created", "gauge", started_s)
    for reason, count in counters.finished.items():
        series(
            "vllm:request_success_total",
            "counter",
            count,
            f'engine="0",finished_reason="{reason}",model_name="{options.model}"',
        )
    blocks = max(options.kv_tokens, options.context_tokens) // options.block_tokens
    cache = (
        f'block_size="{options.block_tokens}",cache_dtype="auto",enable_prefix_caching="True",engine="0",'
        f'kv_cache_size_tokens="{blocks * options.block_tokens}",num_gpu_blocks="{blocks}"'
    )
    series("vllm:cache_config_info", "gauge", 1, cache)
    return ("\n".join(lines) + "\n").encode()
