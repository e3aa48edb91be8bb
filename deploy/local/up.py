"""Everything from a fresh clone to a served and metered request: a list of steps, each of which does
nothing where nothing is to do.
"""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from deploy.local import catalogue, credentials, demo, environments, first_request, postgres, valkey
from deploy.local.admin_api import AdminApi
from deploy.local.credentials import Credentials
from deploy.local.processes import Processes
from deploy.local.progress import Progress, Step, StepFailed, tell_failure
from deploy.local.services import POOLING, WORKER, Services, Stores, needs_pooling
from deploy.local.settings import ROOT, LocalSettings, read_settings
from serving.model_files import ModelFilesError, ensure_model

_STEPS: Final = 13


def up() -> int:
    """Start what does not run yet, then serve one request and show its bill. The exit status."""
    progress = Progress(_STEPS)
    try:
        _Up(read_settings(), progress).run()
    except StepFailed as exc:
        tell_failure(exc, sys.stdout)
        return 1
    except KeyboardInterrupt:
        progress.say("stopped; `make up` goes on from here, `make down` stops what runs")
        return 130
    return 0


class _Up:
    """One run of `up`."""

    def __init__(self, settings: LocalSettings, progress: Progress) -> None:
        self._settings = settings
        self._progress = progress
        self._processes = Processes(settings.folder)

    def run(self) -> None:
        """The list, alone."""
        with alone(self._settings.folder):
            self._run()

    def _run(self) -> None:
        """The list. The engine starts beside later steps."""
        settings, step = self._settings, self._progress.step
        # What cannot work is told before anything is started.
        entry = catalogue.model_entry(settings)
        with step("keys") as now:
            keys = _keys(settings)
            now.result = str(settings.folder)
        services = Services(settings, keys, self._processes)
        services.require_free_ports()
        with step("Redis") as now:
            redis_url = self._redis(keys, now)
        with step("PostgreSQL") as now:
            stores = Stores(redis_url, self._postgres(now))
        credentials.write_services_env(settings, keys, stores.redis_url, stores.database_url)
        credentials.write_service_key(settings, keys)
        with step("billing, admin API") as now:
            services.start_billing(stores, now)
            now.result = now.result or settings.admin_url
        admin = AdminApi(settings.admin_url, keys.admin_key)
        with step("model and price") as now:
            model = catalogue.ensure_model(admin, entry, now)
        with step("vLLM") as now:
            self._vllm(services, stores, model, now)
        with step("gateway") as now:
            services.start_gateway(stores, now)
            now.result = now.result or settings.gateway_url
        with step("batches") as now:
            services.start_batch(stores, now)
            now.result = now.result or settings.batch_url
        with step("demo tenant") as now:
            key = demo.ensure(admin, settings, keys, model["name"], now)
        with step("engine") as now:
            instance = self._engine(services, admin, model, now)
        self._first_request(admin, key, model["name"], instance)
        with step("engine of embeddings") as now:
            self._pooling_engine(services, admin, model, now)
        admin.close()
        self._say_what_next()

    def _redis(self, keys: Credentials, step: Step) -> str:
        address = valkey.url(self._settings, keys)
        if self._settings.redis_url is not None:
            warnings = valkey.check_given(address)
            step.result = " ".join(
                ["the one of TAAS_REDIS_URL", *(f"Warning: {warning}" for warning in warnings)]
            )
        else:
            started = valkey.start(self._settings, keys, self._processes)
            step.result = f"Valkey on port {self._settings.valkey_port}" if started else "runs already"
        return address

    def _postgres(self, step: Step) -> str:
        if self._settings.database_url is not None:
            step.result = "the one of TAAS_DATABASE_URL"
            return postgres.check_given(self._settings.database_url)
        address, started = postgres.start(self._settings)
        step.result = f"socket in {self._settings.folder / 'postgres'}" if started else "runs already"
        return address

    def _vllm(self, services: Services, stores: Stores, model: dict[str, Any], step: Step) -> None:
        """Its environment and the model's files, then the workers, whose engines start while the next steps
        run.
        """
        settings = self._settings
        if settings.engine_url is not None:
            step.result = "the one of TAAS_ENGINE_URL"
            return
        environment = environments.vllm(ROOT, settings.logs, settings.vllm, settings.torch_index)
        if settings.vllm_python == environment.python:
            environments.ensure(environment, step.note)
        try:
            ensure_model(settings.folder, model["name"], settings.vllm_python, step.note)
        except ModelFilesError as exc:
            raise StepFailed(str(exc), "Do what it says, then run `make up` again.") from exc
        services.start_workers(stores, model, step)
        step.result = step.result or "environment and model files ready, engine starting"

    def _engine(
        self, services: Services, admin: AdminApi, model: dict[str, Any], step: Step
    ) -> dict[str, Any]:
        if self._settings.engine_url is not None:
            return catalogue.ensure_instance(admin, self._settings, model["name"], step)
        instance = services.wait_for_engine(admin, model, WORKER, step)
        step.result = f"{instance['instance']} at {instance['url']}"
        return instance

    def _pooling_engine(self, services: Services, admin: AdminApi, model: dict[str, Any], step: Step) -> None:
        """It comes up beside the other one, and is only waited for once that one has served."""
        if self._settings.engine_url is not None or not needs_pooling(self._settings, model):
            step.result = "none"
            return
        instance = services.wait_for_engine(admin, model, POOLING, step)
        step.result = f"{instance['instance']} at {instance['url']}"

    def _first_request(self, admin: AdminApi, key: str, model: str, instance: dict[str, Any]) -> None:
        settings, say = self._settings, self._progress.say
        before = first_request.engine_counters(admin, instance["instance"])
        say(f"\n> {first_request.PROMPT}")
        answer = first_request.send(settings, key, model, _show)
        say("\n")
        with self._progress.step("first request") as now:
            now.result = (
                f"{answer.request_id}: first token after {answer.first_token_s:.2f} s, whole "
                f"{answer.whole_s:.2f} s"
            )
        with self._progress.step("its bill"):
            receipt = first_request.wait_for_bill(settings, key, answer.request_id)
            after = first_request.engine_counters(admin, instance["instance"])
        for line in first_request.bill_lines(receipt, before, after):
            say(line)

    def _say_what_next(self) -> None:
        path: Path = demo.env_path(self._settings)
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        self._progress.say(
            f"\neverything runs, {self._progress.elapsed_s:.0f} s\n"
            f"    API       {self._settings.gateway_url}   (OpenAI and Anthropic SDKs; keys: set -a; . "
            f"{path}; set +a)\n"
            f"    admin     {self._settings.admin_url}   (.venv/bin/taas --help)\n"
            f"    stop      make down"
        )


def _keys(settings: LocalSettings) -> Credentials:
    try:
        return credentials.of(settings)
    except ValueError as exc:
        raise StepFailed(
            str(exc), "Remove the file: new keys are made, and old admin keys stop working."
        ) from exc


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Only one `up` or `down` at a time: two would start everything twice. Raises StepFailed."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepFailed(f"`up` or `down` is at work on {home}", "Wait until it has ended.") from None
        yield
