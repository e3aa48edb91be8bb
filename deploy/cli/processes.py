"""Commands that start, stop and show processes. What they do is in `deploy.local` and in each process's
own package.
"""

import sys

import click

from deploy.cli.output import json_option

# A process parses its own arguments, `--help` among them.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@click.command()
def up() -> None:
    """Start everything on this machine, in the background, up to a served and billed request.

    Environments, stores, engine, billing, gateway, and a demo tenant with a key in .taas/demo.env. It can be
    repeated. TAAS_VLLM=gpu, TAAS_ENGINE_URL, TAAS_REDIS_URL and TAAS_DATABASE_URL use existing services.
    """
    from deploy.local.up import up as start

    sys.exit(start())


@click.command()
def down() -> None:
    """Stop what `taas up` started. Its data stays in .taas."""
    from deploy.local.down import down as stop

    sys.exit(stop())


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show which parts of `taas up` run, and whether they are healthy."""
    from deploy.local.status import status as look

    sys.exit(look(as_json=as_json))


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def gateway(args: tuple[str, ...]) -> None:
    """Run one gateway in the foreground (`taas gateway --help`)."""
    from gateway.__main__ import main as run

    run(list(args))


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def worker(args: tuple[str, ...]) -> None:
    """Run one engine of a model in the foreground (`taas worker --help`)."""
    from serving.__main__ import main as run

    run.main(args=list(args), prog_name="taas worker")


@click.command(context_settings=_PASS_ON, add_help_option=False)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def launcher(args: tuple[str, ...]) -> None:
    """Run the instances that `taas apply` has said, in the foreground (`taas launcher --help`)."""
    from serving.launching.__main__ import main as run

    run.main(args=list(args), prog_name="taas launcher")


@click.command()
def billing() -> None:
    """Run the billing process and the admin API in the foreground.

    Settings come from the environment: TAAS_DATABASE_URL, TAAS_REDIS_URL, TAAS_ADMIN_KEY, TAAS_SERVICE_KEY,
    TAAS_ADMIN_PORT.
    """
    from billing.__main__ import main as run

    sys.exit(run())


@click.command("batch-service")
def batch_service() -> None:
    """Run the process that serves files and batches in the foreground.

    Settings come from the environment: TAAS_DATABASE_URL, TAAS_REDIS_URL, TAAS_SERVICE_KEY,
    TAAS_BATCH_GATEWAY_URL, TAAS_BATCH_PORT, TAAS_BATCH_STORE_URL, TAAS_BATCH_CONCURRENCY. Any number of
    processes may share one database and one store.
    """
    from billing.batch.__main__ import main as run

    sys.exit(run())
