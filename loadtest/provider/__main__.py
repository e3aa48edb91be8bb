"""`python -m loadtest.provider`: start a scripted provider."""

import argparse

import uvloop

from loadtest.engine.server import serve
from loadtest.provider.options import ProviderOptions
from loadtest.provider.provider import Provider


def parse_options(arguments: list[str] | None = None) -> ProviderOptions:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.provider", description="A scripted API of another provider."
    )
    parser.add_argument("--dialect", choices=("openai", "anthropic"), required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--model", default="big-1", help="the one model that is served")
    parser.add_argument("--api-key", required=True)
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="its certificate (PEM); without it, plain HTTP"
    )
    parser.add_argument("--tls-key", metavar="FILE")
    parser.add_argument("--decode-ms", type=float, default=2.0, help="a step: one token for each stream")
    parser.add_argument("--context", type=int, default=8192, dest="context_tokens")
    return ProviderOptions(**vars(parser.parse_args(arguments)), request_counts=False)


def main() -> None:
    """Run in this process."""
    options = parse_options()
    uvloop.run(serve((Provider(options), options)))


if __name__ == "__main__":
    main()
