"""Our own processes: billing, gateway, workers. How each is started, what it may know, and when it is up."""

import sys
from dataclasses import dataclass
from typing import Any, Final

import httpx

from billing.wire.certificates import checked_by
from billing.wire.routes import TEXT_ROUTES, generates
from deploy.local.admin_api import AdminApi
from deploy.local.credentials import Credentials, evidence_key
from deploy.local.ports import require_free
from deploy.local.processes import Processes, Running
from deploy.local.progress import Step, StepFailed, last_words
from deploy.local.settings import HOST, ROOT, LocalSettings, child_environment

BILLING: Final = "billing"
GATEWAY: Final = "gateway"
BATCH: Final = "batch"
WORKER: Final = "worker"
# Whose name invoices bear unless TAAS_ISSUER is set.
_ISSUER: Final = "local taas"
# The worker whose engine pools.
POOLING: Final = "pooling"
# Where two engines share a GPU, what each takes of the memory that one would take.
_SHARED_GPU: Final = {WORKER: 0.75, POOLING: 0.25}
# Longer than each takes by itself: a gateway's streams have 30 s, 5 s to settle and 60 s to save what could
# not be, a worker's 60 s and then vLLM's end.
_GRACE_S: Final = {GATEWAY: 105.0, WORKER: 100.0, POOLING: 100.0, BILLING: 20.0, BATCH: 40.0}
_GRACE_OVER_DRAIN_S: Final = 75.0
_START_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Stores:
    """Where Redis and PostgreSQL are, passwords included."""

    redis_url: str
    database_url: str


def grace_s(settings: LocalSettings, name: str) -> float:
    """How long a process may take to end before it is killed."""
    return max(_GRACE_S[name], (settings.drain_s or 0.0) + _GRACE_OVER_DRAIN_S)


class Services:
    """Starts and checks the processes of one home. A process that already runs as it should is left alone."""

    def __init__(self, settings: LocalSettings, credentials: Credentials, processes: Processes) -> None:
        self._settings = settings
        self._credentials = credentials
        self._processes = processes

    def require_free_ports(self) -> None:
        """Before anything is started. StepFailed when a port is taken by a program that is not ours."""
        # One that runs may hold a port that another gets now; that is seen when the other is started.
        if not any(self._processes.find(name) for name in (BILLING, GATEWAY)):
            for name in (BILLING, GATEWAY):
                self._require_free_ports(name)

    def start_billing(self, stores: Stores, step: Step) -> None:
        """Migrates the database, consumes usage, and opens the admin API."""
        settings, keys = self._settings, self._credentials
        environment = child_environment(
            settings,
            TAAS_REDIS_URL=stores.redis_url,
            TAAS_DATABASE_URL=stores.database_url,
            TAAS_ADMIN_KEY=keys.admin_key,
            TAAS_SERVICE_KEY=keys.service_key,
            TAAS_EVIDENCE_KEY_FILE=str(evidence_key(settings)),
        )
        environment["TAAS_ISSUER"] = environment.get("TAAS_ISSUER") or _ISSUER
        running = self._start(BILLING, [sys.executable, "-m", "billing"], environment, step)
        self._processes.wait_until(
            running, lambda: get_ok(f"{settings.admin_url}/healthz"), _START_TIMEOUT_S, step.note
        )

    def start_gateway(self, stores: Stores, step: Step) -> None:
        """The API. It is told neither the ledger's address nor the admin key."""
        settings = self._settings
        environment = child_environment(
            settings, TAAS_REDIS_URL=stores.redis_url, TAAS_SERVICE_KEY=self._credentials.service_key
        )
        environment.setdefault("TAAS_UNREADY_S", "0")  # there is no load balancer that has to notice an end
        running = self._start(GATEWAY, [sys.executable, "-m", "gateway"], environment, step)
        self._processes.wait_until(
            running, lambda: get_ok(f"{settings.gateway_url}/readyz"), _START_TIMEOUT_S, step.note
        )

    def start_batch(self, stores: Stores, step: Step) -> None:
        """Files and batches. It is told neither the admin key nor an engine's."""
        settings = self._settings
        if not settings.batch:
            self._processes.stop(BATCH, grace_s(settings, BATCH))
            step.result = "none"
            return
        environment = child_environment(
            settings,
            TAAS_REDIS_URL=stores.redis_url,
            TAAS_DATABASE_URL=stores.database_url,
            TAAS_SERVICE_KEY=self._credentials.service_key,
        )
        running = self._start(BATCH, [sys.executable, "-m", "billing.batch"], environment, step)
        self._processes.wait_until(
            running, lambda: get_ok(f"{settings.batch_url}/healthz"), _START_TIMEOUT_S, step.note
        )

    def start_workers(self, stores: Stores, model: dict[str, Any], step: Step) -> None:
        """Starts the workers only; their engines take most of a minute, so other steps go on meanwhile."""
        environment = child_environment(self._settings, TAAS_REDIS_URL=stores.redis_url)
        command = [sys.executable, "-m", "serving", model["name"]]
        commands = {WORKER: command}
        if needs_pooling(self._settings, model):
            commands[POOLING] = [*command, "--pooling"]
        else:
            self._processes.stop(POOLING, grace_s(self._settings, POOLING))
        for worker, argv in commands.items():
            memory = self._settings.gpu_memory_utilization * (_SHARED_GPU[worker] if len(commands) > 1 else 1)
            self._start(worker, argv, environment | {"TAAS_GPU_MEMORY_UTILIZATION": f"{memory:.3f}"}, step)

    def wait_for_engine(
        self, admin: AdminApi, model: dict[str, Any], worker: str, step: Step
    ) -> dict[str, Any]:
        """Until the worker's instance of the model is ready; the instance."""
        found: list[dict[str, Any]] = []

        def ready() -> bool:
            rows = admin.rows("instances")
            found[:] = [row for row in rows if row["model"] == model["name"] and is_of(worker, row)]
            return any(row["status"] == "ready" for row in found)

        running = self._processes.find(worker)
        if running is None:
            log = self._processes.log_of(worker)
            raise StepFailed(
                f"the worker ended: {last_words(log)}", "Mend what it says, then run it again.", log
            )
        self._processes.wait_until(running, ready, self._settings.engine_start_timeout_s, step.note)
        return next(row for row in found if row["status"] == "ready")

    def _start(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        step: Step,
    ) -> Running:
        running = self._processes.find_as(name, command, environment)
        if running is not None:
            step.result = "runs already"
            return running
        if self._processes.stop(name, grace_s(self._settings, name)):
            step.result = "started again with the new settings"
        self._require_free_ports(name)
        return self._processes.start(name, command, environment, ROOT)

    def _require_free_ports(self, name: str) -> None:
        settings = self._settings
        ports = {
            BILLING: [
                ("TAAS_ADMIN_PORT", settings.admin_port, HOST),
                ("TAAS_BILLING_METRICS_PORT", settings.billing_metrics_port, HOST),
            ],
            GATEWAY: [
                ("TAAS_GATEWAY_PORT", settings.gateway_port, settings.gateway_host),
                *(("TAAS_GATEWAY_METRICS_PORT", port, HOST) for port in settings.gateway_metrics_ports),
            ],
            BATCH: [
                ("TAAS_BATCH_PORT", settings.batch_port, HOST),
                ("TAAS_BATCH_METRICS_PORT", settings.batch_metrics_port, HOST),
            ],
            WORKER: [],  # workers take the first ones that are free
            POOLING: [],
        }
        for variable, port, host in ports[name]:
            require_free(port, variable, host)


def needs_pooling(settings: LocalSettings, model: dict[str, Any]) -> bool:
    """Whether an engine that pools is to run beside the one that generates."""
    offered = model["routes"]
    return settings.pooling and generates(offered) and not set(offered) <= set(TEXT_ROUTES)


def is_of(worker: str, instance: dict[str, Any]) -> bool:
    """Whether a row of instances is of such a worker."""
    routes = instance["routes"]
    return (routes is None or generates(routes)) == (worker == WORKER)


def get_ok(url: str, timeout_s: float = 2.0) -> bool:
    """Whether it answers 200."""
    try:
        return httpx.get(url, timeout=timeout_s, trust_env=False, verify=checked_by(url)).status_code == 200
    except httpx.HTTPError:
        return False
