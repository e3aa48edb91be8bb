"""`python -m loadtest.engine`: start a simulated engine."""

import argparse

import uvloop

from loadtest.engine.engine import Engine
from loadtest.engine.options import EngineOptions
from loadtest.engine.server import serve


def parse_options(arguments: list[str] | None = None) -> EngineOptions:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine", description="A simulated vLLM server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="sim", help="the one model that is served")
    parser.add_argument("--api-key", default=None, help="asked for on /v1 and /inference (default: none)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--prefill-tokens-per-s",
        type=float,
        default=200_000.0,
        help="on tokens that are not cached; 0 = at once",
    )
    parser.add_argument(
        "--decode-ms",
        type=float,
        default=2.0,
        help="a step: one token for each running sequence; 0 = as fast as possible",
    )
    parser.add_argument("--slots", type=int, default=256, help="sequences that run at the same time")
    parser.add_argument(
        "--context",
        type=int,
        default=2048,
        dest="context_tokens",
        help="tokens of prompt and output together",
    )
    parser.add_argument("--block-tokens", type=int, default=16, help="the prefix cache's block")
    parser.add_argument(
        "--kv-tokens", type=int, default=524_288, help="room for the tokens of all running sequences"
    )
    parser.add_argument(
        "--shutdown-timeout",
        type=float,
        default=0.0,
        dest="shutdown_timeout_s",
        help="seconds for streams to end on SIGTERM",
    )
    parser.add_argument(
        "--no-request-counts",
        action="store_false",
        dest="request_counts",
        help="as a vLLM without our middleware: no /taas/request_counts",
    )
    parser.add_argument(
        "--pooling", action="store_true", help="embeddings and scores in place of text, as `--runner pooling`"
    )
    return EngineOptions(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Run in this process."""
    options = parse_options()
    uvloop.run(serve((Engine(options), options)))


if __name__ == "__main__":
    main()
