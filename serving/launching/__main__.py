"""`taas launcher`: one process that starts and stops workers, as the catalogue says."""

import asyncio
import signal
import sys
import time

import click
from pydantic import ValidationError

from billing.wire.cancellation import end_tasks
from serving.launch import CannotStart, connect, find_redis
from serving.launching.gpus import gpus_here
from serving.launching.launcher import Launcher
from serving.launching.leader import Leader
from serving.launching.local import LocalLauncher
from serving.launching.reconcile import Reconciler
from serving.launching.wanted import Wanted
from serving.settings import LauncherSettings, WorkerSettings, inherited_environment

_ROUND_S = 0.5


@click.command(name="launcher")
def main() -> None:
    """Run instances as `taas apply` has said (`launch` of a pool), and keep it so: missing ones are started,
    those that are too many are drained, those whose lease has run out are replaced, and those that were
    started in an old way are exchanged one by one.

    \b
    TAAS_LAUNCHER=local   workers are processes of this machine and end with the launcher; each has GPUs of
                          its own (of CUDA_VISIBLE_DEVICES, default: all)
    TAAS_LAUNCHER=ray     workers are on the nodes of the Ray cluster at TAAS_RAY_ADDRESS and stay when the
                          launcher ends; needs what serving/ray.lock pins, on every node

    It reads TAAS_ADMIN_URL with TAAS_SERVICE_KEY, and the settings of `taas worker`. Of several launchers one
    acts, and another takes over when it dies.
    """
    try:
        asyncio.run(_run(LauncherSettings()))
    except ValidationError as exc:
        wrong = "; ".join(f"TAAS_{str(error['loc'][0]).upper()}: {error['msg']}" for error in exc.errors())
        _fail(f"a setting is wrong: {wrong}")
    except CannotStart as exc:
        _fail(str(exc))


async def _run(settings: LauncherSettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    wanted = Wanted(
        [url for url in settings.admin_url.split(",") if url], settings.service_key.get_secret_value(), _note
    )
    async with connect(find_redis(settings.redis_url.get_secret_value())) as redis:
        leader, launcher = Leader(redis), await _launcher(settings)
        reconciler = Reconciler(launcher, redis, _note)
        # Beside the rounds, because one may take longer than the lease.
        renewing = asyncio.create_task(leader.keep())
        told = False
        try:
            while not stopping.is_set():
                if leader.leads and not told:
                    _note(f"this launcher acts ({settings.launcher})")
                told = leader.leads
                launches = await wanted.read() if leader.leads else None
                if launches is not None and leader.leads:
                    await reconciler.round(launches)
                await _within(stopping, _ROUND_S)
        finally:
            await launcher.close()
            await end_tasks(renewing)
            await leader.resign()
            await wanted.close()
    _note("stopped")


async def _launcher(settings: LauncherSettings) -> Launcher:
    environment = inherited_environment() | {"TAAS_PRESENCE_S": str(settings.presence_s)}
    if settings.launcher == "ray":
        from serving.launching.ray_cluster import connect_ray

        ours = {f"TAAS_{field.upper()}" for field in WorkerSettings.model_fields}
        given = {name: value for name, value in environment.items() if name in ours}
        return await asyncio.to_thread(connect_ray, settings.ray_address, given, _note)
    here = gpus_here(environment.get("CUDA_VISIBLE_DEVICES"))
    return LocalLauncher(environment, (settings.home / "logs").absolute(), here, _note)


async def _within(event: asyncio.Event, wait_s: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), wait_s)
    except TimeoutError:
        return


def _note(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}")
    sys.stdout.flush()


def _fail(text: str) -> None:
    click.echo(f"taas launcher: {text}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
