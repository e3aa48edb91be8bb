"""Routes of instances."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from billing import instances, models
from billing.api.control import Control, ControlPlane
from billing.api.fields import Body, Name, NamePath, Text
from billing.engine_probe import Probe, probe_engine, unprobed
from billing.instances import Instance, check_url
from billing.refusals import Conflict, Unreachable
from billing.registered import Registered, read_registered

router = APIRouter(prefix="/admin/v1", tags=["instances"])


class NewInstance(Body):
    """An engine that runs already. `key` is what it asks of us; `force` adds it though it does not answer as it should.

    `priority`: it schedules by priority (vLLM: `--scheduling-policy priority`). This cannot be seen from outside, and other servers refuse a
    parameter that they do not know.
    """

    model: Name
    url: Annotated[str, Field(min_length=1, max_length=2048)]
    key: Text | None = None
    instance: Name | None = None
    priority: bool = False
    force: bool = False


@router.post("/instances", status_code=201)
def add(body: NewInstance, control: Control, response: Response) -> dict[str, Any]:
    """Look at an engine and, if it serves the model, send it requests from now on. Its counters so far become its baseline."""
    url = check_url(body.url)
    with control.reading() as connection:
        model = models.find(connection, body.model)
        instances.check_free(connection, model.name, url, body.instance)
        by_hand = instances.ids(connection)
    _check_not_a_workers(control, by_hand, url, body.instance)
    probe = _probe(control, url, body, model)
    with control.changing(response) as connection:
        added = instances.add(
            connection,
            body.model,
            url,
            probe.facts,
            engine_key=body.key,
            instance_id=body.instance,
            priority=body.priority,
        )
    return {**_shown(added), "warnings": probe.warnings}


@router.get("/instances")
def list_all(control: Control) -> dict[str, Any]:
    """Every instance that is there now, of workers too, with its load."""
    with control.reading() as connection:
        by_hand = instances.ids(connection)
    return {"data": [_registered(entry, by_hand) for entry in read_registered(control.redis)]}


@router.delete("/instances/{instance:path}")
def remove(instance: NamePath, control: Control, response: Response) -> dict[str, Any]:
    """Take an instance out: nothing new goes there, what is open may end. The engine itself is left running."""
    with control.changing(response) as connection:
        return _shown(instances.remove(connection, instance))


def _probe(control: ControlPlane, url: str, body: NewInstance, model: models.Model) -> Probe:
    try:
        return probe_engine(control.http, url, body.key, model.engine_model, model.context_tokens)
    except Unreachable as exc:
        if not body.force:
            raise
        return Probe(unprobed(), (exc.message, "Added all the same: its counters and abilities are not known."))


def _check_not_a_workers(control: ControlPlane, by_hand: Collection[str], url: str, instance: str | None) -> None:
    """Raises Conflict when a worker serves under this URL or id: its tokens would be counted twice."""
    for entry in read_registered(control.redis):
        if entry.instance in by_hand:
            continue
        if entry.url.rstrip("/").removesuffix("/v1") == url:
            raise Conflict(f"{url} is instance {entry.instance!r} already.", param="url")
        if entry.instance == instance:
            raise Conflict(f"There is an instance {instance!r} already.", param="instance")


def _shown(instance: Instance) -> dict[str, Any]:
    return {
        "instance": instance.instance_id,
        "model": instance.model,
        "pool": instance.pool,
        "cell": instance.cell,
        "url": instance.url,
        "status": "ready" if instance.removed_ms is None else "draining",
        "added": "by hand",
        "abort": instance.abort,
        "counts": instance.counts,
        "priority": instance.priority,
        "epoch": instance.epoch,
        "baseline": {"prompt": instance.baseline_prompt, "generation": instance.baseline_generation},
        "created_ms": instance.created_ms,
    }


def _registered(entry: Registered, by_hand: frozenset[str]) -> dict[str, Any]:
    fields = asdict(entry)
    load = {name: fields.pop(name) for name in ("running", "waiting", "kv_usage")}
    return {**fields, "added": "by hand" if entry.instance in by_hand else "by its worker", "load": load}
