"""The command line of one gateway: `python -m gateway`, and what `taas gateway` calls. Options win over
the environment.
"""

import sys
from typing import Any

import click

from gateway.process.serve import run
from gateway.settings import GatewaySettings

# Settings that have an option of their own; all can be given in the environment.
OPTIONS = ("host", "port", "processes", "metrics_port", "redis_url", "log_level", "home")


class _Command(click.Command):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        rows = []
        for name, field in GatewaySettings.model_fields.items():
            shown = "" if "Secret" in str(field.annotation) else f" [{field.default}]"
            rows.append((field.alias or f"TAAS_{name.upper()}", f"{field.description}{shown}"))
        with formatter.section("Environment"):
            formatter.write_dl(rows)


def _command() -> click.Command:
    """Made at the call: an option's help is its setting's description."""

    def start(**given: Any) -> None:
        settings = GatewaySettings(**{name: value for name, value in given.items() if value is not None})
        sys.exit(run(settings))

    options = []
    for name in OPTIONS:
        field = GatewaySettings.model_fields[name]
        kind = field.annotation if field.annotation in {int, float, str} else str
        options.append(click.Option([f"--{name.replace('_', '-')}"], type=kind, help=field.description))
    return _Command(
        "gateway",
        callback=start,
        params=list(options),
        help="Serve the API: OpenAI's and Anthropic's dialects.",
    )


def main(args: list[str] | None = None) -> None:
    """Run the command; `args` None takes the process's own."""
    _command().main(args=args, prog_name="taas gateway")


if __name__ == "__main__":
    main()
