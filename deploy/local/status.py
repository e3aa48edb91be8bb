"""What of one home runs, where, and whether it answers."""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from deploy.local import credentials, postgres, valkey
from deploy.local.admin_api import AdminApi
from deploy.local.processes import Processes
from deploy.local.progress import StepFailed, tell_failure
from deploy.local.services import BATCH, BILLING, GATEWAY, POOLING, WORKER, get_ok, is_of, needs_pooling
from deploy.local.settings import DEFAULT_MODEL, LocalSettings, read_settings

UP = "up"


@dataclass(frozen=True, slots=True)
class Part:
    """One line. `state`: `up` · `starting` (it runs, but does not answer) · `down`."""

    name: str
    state: str
    pid: int | None
    where: str


def status(*, as_json: bool = False) -> int:
    """Print it, as a table or as JSON. 0 when everything answers, else 1."""
    try:
        settings = read_settings()
        parts, unsold = look(settings), not_for_sale(settings)
    except StepFailed as exc:
        tell_failure(exc, sys.stderr)
        return 1
    if as_json:
        print(json.dumps({"parts": [asdict(part) for part in parts], "not_for_sale": unsold}))
    else:
        for part in parts:
            print(f"{part.name:<11} {part.state:<9} {part.pid or '-':>8}  {part.where}")
        if unsold:
            print(
                f"warning: no price, so external tenants do not know of it: {', '.join(unsold)}."
                " `taas price set --model …` sells it, `--free` gives it away"
            )
    return 0 if all(part.state == UP for part in parts) else 1


def look(settings: LocalSettings) -> list[Part]:
    """Every part of this home, the stores first."""
    processes = Processes(settings.folder)
    return [
        _redis(settings, processes),
        _postgres(settings),
        _process(processes, BILLING, get_ok(f"{settings.admin_url}/healthz"),
        f"{settings.admin_url}, metrics on {settings.billing_metrics_port}"),
        _process(processes, GATEWAY, get_ok(f"{settings.gateway_url}/readyz"),
        f"{settings.gateway_url}, metrics on {_first_to_last(settings.gateway_metrics_ports)}"),
        *_batch(settings, processes),
        *_instances(settings, processes),
    ]  # fmt: skip


def _batch(settings: LocalSettings, processes: Processes) -> list[Part]:
    if not settings.batch:
        return []
    where = f"{settings.batch_url}, metrics on {settings.batch_metrics_port}"
    return [_process(processes, BATCH, get_ok(f"{settings.batch_url}/healthz"), where)]


def _first_to_last(ports: range) -> str:
    return f"{ports[0]}" if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"


def _redis(settings: LocalSettings, processes: Processes) -> Part:
    if settings.redis_url is not None:
        return _given_redis(settings.redis_url)
    if not (settings.folder / "secrets.json").exists():
        return Part("Valkey", "down", None, f"port {settings.valkey_port}")
    address = valkey.url(settings, credentials.of(settings))
    return _process(processes, valkey.NAME, valkey.answers(address), f"port {settings.valkey_port}", "Valkey")


def _given_redis(address: str) -> Part:
    """With what it may lose, or why it cannot be used."""
    try:
        warnings = valkey.check_given(address)
    except StepFailed as exc:
        return Part("Redis", "down", None, str(exc))
    return Part(
        "Redis", UP, None, " ".join(["TAAS_REDIS_URL", *(f"warning: {warning}" for warning in warnings)])
    )


def _postgres(settings: LocalSettings) -> Part:
    if settings.database_url is not None:
        try:
            postgres.check_given(settings.database_url)
        except StepFailed as exc:
            return Part("PostgreSQL", "down", None, str(exc))
        return Part("PostgreSQL", UP, None, "TAAS_DATABASE_URL")
    pid = postgres.pid(settings)
    return Part("PostgreSQL", "down" if pid is None else UP, pid, f"socket in {settings.folder / 'postgres'}")


def not_for_sale(settings: LocalSettings) -> list[str]:
    """Models that external tenants would know of if they had a price. None where billing does not answer."""
    return [
        row["name"]
        for row in _rows(settings, "models")
        if row["status"] == "active" and row["visible"] != "internal" and row["for_sale_from_ms"] is None
    ]


def _rows(settings: LocalSettings, path: str) -> list[dict[str, Any]]:
    """A listing of the admin API; empty where billing does not answer."""
    if not get_ok(f"{settings.admin_url}/healthz"):
        return []
    admin = AdminApi(settings.admin_url, credentials.of(settings).admin_key)
    try:
        return admin.rows(path)
    except StepFailed:
        return []
    finally:
        admin.close()


def _instances(settings: LocalSettings, processes: Processes) -> list[Part]:
    """The workers, and every instance that the registry has now."""
    # A removed one is nobody's concern any more, whether its engine runs or not.
    rows = [row for row in _rows(settings, "instances") if not row["removed"]]
    found = [
        Part("instance", UP if row["status"] == "ready" else row["status"], None,
        f"{row['instance']} of {row['model']}, {row['url']}{_without_own_user(row)}")
        for row in rows
    ]  # fmt: skip
    if settings.engine_url is not None:
        return found
    name = settings.model or DEFAULT_MODEL
    model = next((row for row in _rows(settings, "models") if row["name"] == name), None)
    workers = [WORKER, *([POOLING] if model is not None and needs_pooling(settings, model) else [])]
    shown = [
        _process(
            processes, worker, any(is_of(worker, row) and row["status"] == "ready" for row in rows),
            "engines from port 8100, metrics from 9110",
        )
        for worker in workers
    ]  # fmt: skip
    return [*shown, *found]


def _without_own_user(row: dict[str, Any]) -> str:
    """Said of a private model's engine only."""
    return "; private, without an OS user of its own" if row.get("own_user") is False else ""


def _process(processes: Processes, name: str, healthy: bool, where: str, shown: str | None = None) -> Part:
    running = processes.find(name)
    state = "down" if running is None else UP if healthy else "starting"
    return Part(shown or name, state, None if running is None else running.pid, where)
