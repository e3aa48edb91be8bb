"""What a simulated engine is started with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Rates are per second, 0 = no limit. `kv_tokens` is the room for all running sequences together. With a
    certificate (a file, PEM) it speaks TLS.
    """

    port: int
    model: str
    api_key: str | None
    host: str = "127.0.0.1"
    prefill_tokens_per_s: float = 200_000.0
    decode_ms: float = 2.0
    slots: int = 256
    context_tokens: int = 2048
    block_tokens: int = 16
    kv_tokens: int = 524_288
    step_tokens_max: int = 8192
    keep_alive_s: float = 5.0
    shutdown_timeout_s: float = 0.0
    cache_blocks_max: int = 65_536
    request_counts: bool = True
    pooling: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
