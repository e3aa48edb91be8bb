"""A stand-in for a vLLM server, as a script: its health, metrics and completions, a child process as vLLM
has, and faults by an admin call.

`fake_engine.py --port N [--start-seconds S] [--fail-with TEXT]`. `POST /fake` with {"running": n} sets the
load, {"tokens": n} produces n tokens, {"do": "die"|"unhealthy"|"hang"} breaks it; `GET /fake` tells the
adapters that it has. It writes its pid and its
child's to the file named by FAKE_PIDS, one line a start.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}.0
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 7.0
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.125
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {prompt}.0
vllm:generation_tokens_total{{engine="0",model_name="m"}} {generation}.0
"""


class State:
    """What the engine would say of itself."""

    def __init__(self) -> None:
        self.running = 0
        self.prompt = 0
        self.generation = 0
        self.adapters: dict[str, str] = {}
        self.healthy = True
        self.hanging = False


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    state: State
    key: str | None

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        while self.state.hanging:
            time.sleep(0.05)
        if self.path == "/health":
            self.answer(200 if self.state.healthy else 503, b"")
        elif self.path == "/fake":
            self.answer(200, json.dumps(self.state.adapters).encode())
        elif self.path == "/metrics":
            self.answer(200, METRICS.format(**vars(self.state)).encode())
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/fake":
            self.state.running = sent.get("running", self.state.running)
            self.state.generation += sent.get("tokens", 0)
            what = sent.get("do")
            if what == "die":
                os._exit(3)
            self.state.healthy = self.state.healthy and what != "unhealthy"
            self.state.hanging = what == "hang"
            self.answer(200, b"{}")
        elif self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.answer(401, b"{}")
        elif self.path == "/v1/load_lora_adapter":
            known = sent["lora_name"] in self.state.adapters
            self.state.adapters[sent["lora_name"]] = sent["lora_path"]
            self.answer(400 if known else 200, b"{}")
        elif self.path == "/v1/unload_lora_adapter":
            self.answer(404 if self.state.adapters.pop(sent["lora_name"], None) is None else 200, b"{}")
        else:
            self.state.prompt += 2
            self.state.generation += sent["max_tokens"]
            usage = {"prompt_tokens": 2, "completion_tokens": sent["max_tokens"]}
            self.answer(200, json.dumps({"choices": [{"text": "1"}], "usage": usage}).encode())


def main() -> None:
    """Start slowly, or fail; then serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start-seconds", type=float, default=0)
    parser.add_argument("--fail-with")
    options, _ = parser.parse_known_args()
    print("(APIServer pid=1) INFO 11-24 04:00:00 [fake.py:1] loading weights", flush=True)
    # As stubborn as a hung engine core: it ignores SIGTERM and does not watch its parent.
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
        ]
    )
    if pids := os.environ.get("FAKE_PIDS"):
        with open(pids, "a", encoding="utf-8") as written:
            written.write(f"{os.getpid()} {child.pid}\n")
    time.sleep(options.start_seconds)
    if options.fail_with:
        sys.exit(f"RuntimeError: {options.fail_with}")
    Handler.state = State()
    Handler.key = os.environ.get("VLLM_API_KEY")
    ThreadingHTTPServer.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


if __name__ == "__main__":
    main()
