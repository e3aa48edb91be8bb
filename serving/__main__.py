"""`taas worker MODEL`: one process, one instance of a model. It owns the command line and puts the parts
together.
"""

import asyncio
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import click
from pydantic import ValidationError

from billing.wire.metrics_page import MetricsPage
from billing.wire.redis_address import RedisAddress
from serving.engine_process import EngineStartFailed
from serving.expected_weights import BadList, read_list
from serving.launch import (
    CannotStart,
    check_host,
    connect,
    find_model,
    find_python,
    find_redis,
    in_url,
    plan_worker,
    read_entry,
    read_previous,
)
from serving.metrics import WorkerMetrics
from serving.model_files import ModelFilesError
from serving.ports import claim_port
from serving.settings import WorkerSettings
from serving.worker import Worker

_METRICS_PORTS_TRIED = 100
# The engine of a worker that was killed holds its port for a moment.
_PORT_WAIT_S = 10.0
_PORT_POLL_S = 0.25


@click.command(name="worker")
@click.argument("model")
@click.option(
    "--path",
    type=click.Path(path_type=Path),
    help="Folder of the model's files. Default: HOME/models/MODEL; a model we know is fetched.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Port of the engine. Default: the first free one from 8100 up.",
)
@click.option(
    "--host",
    help="Private address of this machine on which engine and metrics listen, and by which gateways and "
    "billing on other "
    "machines reach them (TAAS_WORKER_HOST). Default: 127.0.0.1, for one machine.",
)
@click.option(
    "--instance",
    "instance",
    help="Name of this instance. Default: MODEL-HOSTNAME-PORT, the same after a restart.",
)
@click.option(
    "--vllm-python",
    type=click.Path(path_type=Path),
    help="Python of the environment that vLLM is installed in (TAAS_VLLM_PYTHON). Default: .venv-vllm/bin/"
    "python.",
)
@click.option(
    "--vllm", type=click.Choice(["cpu", "gpu"]), help="Which build of vLLM that is (TAAS_VLLM). Default: cpu."
)
@click.option(
    "--engine-arg",
    "engine_args",
    multiple=True,
    metavar="ARG",
    help="One more argument for vLLM; repeat it: --engine-arg=--tool-call-parser --engine-arg=hermes.",
)
@click.option(
    "--pooling",
    is_flag=True,
    help="Serve the routes of MODEL that generate no text, such as embeddings: an engine either generates or "
    "pools, so a model that offers both has two workers.",
)
@click.option(
    "--weights-sha256",
    "weights_list",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="List of MODEL's files as `sha256sum` writes it. The engine starts only with exactly these files.",
)
@click.option(
    "--adapters",
    type=click.IntRange(0, 1024),
    metavar="N",
    help="Take up to N LoRA adapters of MODEL, `taas adapter add` (TAAS_ADAPTERS). Default: none, which is "
    "faster.",
)
@click.option(
    "--adapter-rank",
    type=click.Choice(["8", "16", "32", "64", "128", "256"]),
    help="Their largest rank (TAAS_ADAPTER_RANK). Default: 16.",
)
@click.option(
    "--cache-events",
    is_flag=True,
    default=None,
    help="Tell gateways what the engine's prefix cache has lost (TAAS_CACHE_EVENTS). Needs pyzmq. Default: "
    "gateways guess.",
)
@click.option(
    "--drain-seconds",
    "drain_s",
    type=click.FloatRange(min=0),
    help="On SIGTERM, how long requests in flight may take to end (TAAS_DRAIN_S). Default: 60.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of models, cache and logs (TAAS_HOME). Default: .taas.",
)
def main(
    model: str,
    path: Path | None,
    port: int | None,
    host: str | None,
    instance: str | None,
    vllm_python: Path | None,
    vllm: str | None,
    engine_args: tuple[str, ...],
    pooling: bool,
    weights_list: Path | None,
    adapters: int | None,
    adapter_rank: str | None,
    cache_events: bool | None,
    drain_s: float | None,
    home: Path | None,
) -> None:
    """Serve MODEL: start vLLM from the model's entry, register it, keep it running.

    The entry is made with `taas model add`. The worker registers its engine once it has produced a token,
    renews it every second, starts it again with growing pauses when it dies, and on SIGTERM or Ctrl-C lets
    running requests end first (twice: at once). Its log lines go to standard output, the engine's to
    HOME/logs.
    """
    try:
        given = {
            "vllm_python": vllm_python,
            "vllm": vllm,
            "adapters": adapters,
            "adapter_rank": None if adapter_rank is None else int(adapter_rank),
            "cache_events": cache_events,
            "drain_s": drain_s,
            "home": home,
            "worker_host": host,
        }
        settings = WorkerSettings.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
        serving = _serve(
            settings, model, path, port, instance, engine_args, pooling=pooling, weights_list=weights_list
        )
        asyncio.run(serving)
    except ValidationError as exc:
        wrong = "; ".join(f"TAAS_{str(error['loc'][0]).upper()}: {error['msg']}" for error in exc.errors())
        _fail(f"a setting is wrong: {wrong}")
    except BadList as exc:
        _fail(f"--weights-sha256: {exc}")
    except (CannotStart, ModelFilesError, EngineStartFailed) as exc:
        _fail(str(exc))


async def _serve(
    settings: WorkerSettings,
    name: str,
    path: Path | None,
    port: int | None,
    instance: str | None,
    engine_args: tuple[str, ...],
    *,
    pooling: bool,
    weights_list: Path | None,
) -> None:
    host = settings.worker_host
    if warning := check_host(host):
        _note(f"warning: {warning}")
    address = find_redis(settings.redis_url.get_secret_value())
    async with connect(address) as redis:
        # Before anything is claimed, so that a wrong address, login or name is all that is said.
        await read_entry(redis, address, name, pooling=pooling)
        engine_port, claim = await _claim_port(settings, port)
        with claim:
            instance = (
                instance or f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', socket.gethostname())}-{engine_port}"
            )
            metrics = WorkerMetrics(instance=instance, model=name)

            async def planned() -> Worker:
                """By what the catalogue and the disk have now."""
                model = await read_entry(redis, address, name, pooling=pooling)
                python = find_python(settings)
                model_path = await asyncio.to_thread(find_model, settings, name, path, python, _note)
                plan = plan_worker(settings, model, instance, engine_port, python, model_path, engine_args)
                if weights_list is not None:
                    plan = replace(plan, expected_weights=read_list(weights_list))
                if plan.private is not None and not plan.private.own:
                    _note(
                        f"warning: this worker is not root, so the engine of the private model {name} has no "
                        "OS user of its own; its evidence says so"
                    )
                return Worker(plan, redis, metrics, _note, await read_previous(redis, address, instance))

            with _page(settings, metrics, address) as page:
                _note(
                    f"worker of {name}: instance {instance}, metrics on http://{in_url(host)}:{page.port}/"
                    "metrics"
                )
                await _run(planned)
        _note("stopped")


async def _run(planned: Callable[[], Awaitable[Worker]]) -> None:
    """One worker after another, for as long as the operator orders restarts."""
    stopping, restarted = asyncio.Event(), False
    while not stopping.is_set():
        worker = await planned()

        def stop(worker: Worker = worker) -> None:
            stopping.set()
            worker.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        restarted = await worker.run(must_start=not restarted)
        if not restarted:
            return
        _note("the operator has ordered a restart")


def _page(settings: WorkerSettings, metrics: WorkerMetrics, redis_address: RedisAddress) -> MetricsPage:
    """Serve metrics on the first free port from the configured one up. Raises CannotStart."""
    first = settings.worker_metrics_port_first
    ports = range(first, min(first + _METRICS_PORTS_TRIED, 65_536))
    try:
        return MetricsPage(
            "worker", metrics.registry, host=settings.worker_host, ports=ports, redis_address=redis_address
        )
    except OSError as exc:
        raise CannotStart(
            f"no free port from {ports[0]} to {ports[-1]} for the worker's metrics: {exc}"
        ) from exc


async def _claim_port(settings: WorkerSettings, given: int | None) -> tuple[int, socket.socket]:
    """The requested port, or the first free one, claimed for this worker. Raises CannotStart."""
    gives_up_at = time.monotonic() + _PORT_WAIT_S
    while True:
        try:
            if given is None:
                return claim_port(settings.worker_host, settings.engine_port_first)
            return claim_port(settings.worker_host, given, 1)
        except OSError as exc:
            if given is None:
                raise CannotStart(str(exc)) from exc
            if time.monotonic() > gives_up_at:
                raise CannotStart(f"{exc}: give another --port, or none for the first free one") from exc
        await asyncio.sleep(_PORT_POLL_S)


def _note(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}")
    sys.stdout.flush()


def _fail(text: str) -> None:
    click.echo(f"taas worker: {text}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
