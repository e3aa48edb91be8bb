"""Routes of instances."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import redis
from fastapi import APIRouter, Query, Response
from pydantic import Field

from billing import refusals
from billing.api.answer import Listing, Refusal
from billing.api.catalogue_answers import InstanceAdded, InstanceAnswer, InstanceRemoved
from billing.api.control import Control, ControlPlane
from billing.api.fields import Body, Name, NamePath, Text
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.audit.engine_runs import close_run
from billing.catalogue import instances, models
from billing.catalogue.instances import AddedInstance, check_url
from billing.fleet.engine_instances import AuditedInstance
from billing.fleet.engine_probe import Probe, probe_engine, unprobed
from billing.fleet.engine_reading import Unreachable, read_engine
from billing.fleet.engine_request_counts import read_instance
from billing.fleet.registered import read_registered
from billing.page import Order, page_of
from billing.refusals import Conflict
from billing.usage.open_requests import read_open
from billing.wire.instance_entry import InstanceEntry
from billing.wire.tokens import CounterPair

router = APIRouter(prefix="/admin/v1", tags=["instances"], dependencies=[KNOWN_QUERY])

Status = Literal["ready", "draining", "starting", "down"]
_BY_ID: Final[Order[InstanceEntry]] = Order("instances", lambda entry: (entry.instance,), (str,))


class NewInstance(Body):
    """An engine that runs already. `key`: the key that it requires, if any. `force`: add it although it does
    not answer as it should. `priority`: it schedules by priority (vLLM: `--scheduling-policy priority`). This
    cannot be detected from outside, and other servers refuse a parameter that they do not know.
    """

    model: Name
    url: Annotated[str, Field(min_length=1, max_length=2048)]
    key: Text | None = None
    instance: Name | None = None
    priority: bool = False
    force: bool = False


@router.post("/instances", status_code=201, response_model=InstanceAdded, responses={424: {"model": Refusal}})
def add(body: NewInstance, control: Control, response: Response) -> dict[str, Any]:
    """Probe an engine and, if it serves the model, send it requests from now on. Its counters so far become
    its baseline. The id of a removed instance may be used again once it has no open requests.
    """
    url = check_url(body.url)
    with control.reading() as connection:
        model = models.find(connection, body.model)
        instances.check_free(connection, model.name, url, body.instance)
        by_hand = instances.shown_ids(connection)
        before = None if body.instance is None else instances.find_removed(connection, body.instance)
    _check_not_a_workers(control, by_hand, url, body.instance)
    if before is not None:
        _check_nothing_open(control, before)
    probe = _probe(control, url, body, model)
    with control.changing(response) as connection:
        if before is not None:
            close_run(connection, _as_counted(before), read_instance(control.http, _as_counted(before)))
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


@router.get("/instances", response_model=Listing[InstanceAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    model: Annotated[Name | None, Query(description="Of this model only.")] = None,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
    status: Annotated[Status | None, Query()] = None,
) -> dict[str, Any]:
    """The registered instances, by id, including those of workers, with their load."""
    with control.reading() as connection:
        by_hand = instances.shown_ids(connection)
    found = [
        entry
        for entry in read_registered(control.redis)
        if model in {None, entry.model} and pool in {None, entry.pool} and status in {None, entry.status}
    ]
    return listing(page_of(found, _BY_ID, asked), lambda entry: _registered(entry, by_hand))


@router.delete("/instances/{instance:path}", response_model=InstanceRemoved)
def remove(instance: NamePath, control: Control, response: Response) -> dict[str, Any]:
    """Remove an instance: it gets no new requests, and open ones may end. The engine is left alone;
    `engine_answers` says whether it runs.
    """
    with control.changing(response) as connection:
        removed = instances.remove(connection, instance)
    reading = read_engine(control.http, removed.url, removed.engine_key)
    answers = not isinstance(reading, Unreachable) or reading.answers
    return {**_shown(removed), "engine_answers": answers, "open_requests": _open_requests(control, removed)}


def _open_requests(control: ControlPlane, instance: AddedInstance) -> int | None:
    """How many requests run there under the registration in SQL; None if Redis does not answer."""
    try:
        return read_open(control.redis, [instance.cell]).requests.get(
            (instance.instance_id, instance.epoch), 0
        )
    except redis.RedisError:
        return None


def _check_nothing_open(control: ControlPlane, before: AddedInstance) -> None:
    """Raises Conflict while requests run under the removed registration: their tokens belong to its epoch."""
    if count := read_open(control.redis, [before.cell]).requests.get((before.instance_id, before.epoch), 0):
        raise Conflict(
            f"Requests of before {before.instance_id!r} was removed still run there: {count}. Add it again "
            "when they have ended.",
            param="instance",
        )


def _as_counted(instance: AddedInstance) -> AuditedInstance:
    baseline = CounterPair(instance.baseline_prompt, instance.baseline_generation)
    return AuditedInstance(
        instance=instance.instance_id,
        model=instance.model,
        pool=instance.pool,
        cell=instance.cell,
        url=instance.url,
        key=instance.engine_key,
        epoch=instance.epoch,
        alive=True,
        baseline=baseline,
        ended=(),
        counts=instance.counts,
    )


def _probe(control: ControlPlane, url: str, body: NewInstance, model: models.Model) -> Probe:
    try:
        return probe_engine(control.http, url, body.key, model.engine_model, model.context_tokens)
    except refusals.Unreachable as exc:
        if not body.force:
            raise
        return Probe(
            unprobed(), (exc.message, "Added all the same: its counters and abilities are not known.")
        )


def _check_not_a_workers(
    control: ControlPlane, by_hand: Collection[str], url: str, instance: str | None
) -> None:
    """Raises Conflict if a worker serves under this URL or id: its tokens would be counted twice."""
    for entry in read_registered(control.redis):
        if entry.instance in by_hand:
            continue
        if entry.url.rstrip("/").removesuffix("/v1") == url:
            raise Conflict(f"{url} is instance {entry.instance!r} already.", param="url")
        if entry.instance == instance:
            raise Conflict(f"There is an instance {instance!r} already.", param="instance")


def _shown(instance: AddedInstance) -> dict[str, Any]:
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


def _registered(entry: InstanceEntry, by_hand: Mapping[str, bool]) -> dict[str, Any]:
    """The entry without the engine's key, which nobody may see."""
    return {
        "instance": entry.instance,
        "model": entry.model,
        "pool": entry.pool,
        "cell": entry.cell,
        "url": entry.url,
        "status": entry.status.value,
        "abort": entry.abort,
        "priority": entry.priority,
        "epoch": entry.epoch,
        "lease_until_ms": entry.lease_until_ms,
        "added": "by hand" if entry.instance in by_hand else "by its worker",
        "removed": by_hand.get(entry.instance, False),
        "load": asdict(entry.load),
    }
