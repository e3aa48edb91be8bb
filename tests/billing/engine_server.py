"""A tiny engine for the tests of billing: real HTTP, scripted counters."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import redis

from billing.wire import redis_keys


@dataclass(kw_only=True)
class ScriptedEngine:
    """What `GET /metrics` says. `status` other than 200 answers with nothing."""

    prompt: int = 0
    generation: int = 0
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    started: str | None = None
    status: int = 200
    key: str | None = None
    url: str = ""
    asked: list[str | None] = field(default_factory=list)
    on_ask: Callable[[], object] = lambda: None
    # Set: the page comes byte by byte, and never to its end, until the event is set.
    drips: threading.Event | None = None
    # What it says of each request, where it does; its counters are then their sum.
    request_counts: bool = False
    boot: str = "boot-1"
    live: dict[str, tuple[int, int]] = field(default_factory=dict)
    ended: dict[str, tuple[int, int]] = field(default_factory=dict)
    forgotten: tuple[int, int] = (0, 0)

    def counts_page(self, after: int) -> bytes:
        """`GET /taas/request_counts`; every request that has ended is one number."""
        requests = [*self.live.values(), *self.ended.values(), self.forgotten]
        finished = list(self.ended.items())[after:]
        return orjson.dumps(
            {
                "v": 1,
                "boot": self.boot,
                "sequence": len(self.ended),
                "counted": {"prompt": sum(p for p, _ in requests), "generation": sum(o for _, o in requests)},
                "running": {name: (prompt, 0, output) for name, (prompt, output) in self.live.items()},
                "finished": {name: (prompt, 0, output) for name, (prompt, output) in finished},
            }
        )

    def page(self) -> str:
        lines = [
            "# TYPE vllm:prompt_tokens counter",
            f'vllm:prompt_tokens_total{{engine="0",model_name="m"}} {self.prompt}.0',
            f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {self.generation}.0',
            f'vllm:num_requests_running{{engine="0",model_name="m"}} {self.running}.0',
            f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {self.waiting}.0',
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {self.kv_usage}',
        ]
        if self.started is not None:
            lines.append(f"process_start_time_seconds {self.started}")
        return "\n".join(lines) + "\n"


@contextmanager
def serve(engine: ScriptedEngine) -> Iterator[ScriptedEngine]:
    """Serve it on a port of its own until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            engine.on_ask()
            engine.asked.append(self.headers.get("authorization"))
            body = engine.page().encode() if engine.status == 200 else b""
            path, _, after = self.path.partition("?after=")
            if path == "/taas/request_counts":
                body = (
                    engine.counts_page(int(after)) if engine.request_counts and engine.status == 200 else b""
                )
                if not engine.request_counts:
                    self.send_response(404)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
            self.send_response(engine.status)
            if engine.drips is None:
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            while engine.drips is not None and not engine.drips.wait(0.01):
                try:
                    self.wfile.write(b"#")
                    self.wfile.flush()
                except OSError:
                    return
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def register(client: redis.Redis, engine: ScriptedEngine, /, instance: str = "i1", **changes: object) -> None:
    """Write its entry as `taas instance add` or a worker would."""
    entry = {
        "instance": instance, "model": "m1", "pool": "m1", "cell": "m1", "url": engine.url, "key": engine.key,
        "epoch": "e1",
        "status": "ready", "lease_until_ms": 0, "abort": True, "load": {"running": 0, "waiting": 0,
        "kv_usage": 0.0},
        "baseline": {"prompt": 0, "generation": 0}, "final": None, "earlier": [],
    } | changes  # fmt: skip
    client.hset(redis_keys.INSTANCES, instance, orjson.dumps(entry))
    client.sadd(redis_keys.CELLS, "m1")
