"""Routes of instances."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Literal

import redis
from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field

from billing import refusals
from billing.api.answer import Listing, Refusal
from billing.api.catalogue_answers import InstanceAdded, InstanceAnswer, InstanceRemoved
from billing.api.control import Control, ControlPlane
from billing.api.fields import Body, Name, NamePath, Text
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.audit.engine_runs import close_run
from billing.catalogue import instances, models
from billing.catalogue.instances import AddedInstance, check_provider_url, check_url
from billing.fleet.engine_instances import AuditedInstance
from billing.fleet.engine_probe import Probe, probe_engine, unprobed
from billing.fleet.engine_reading import Unreachable, read_engine
from billing.fleet.engine_request_counts import read_instance
from billing.fleet.provider_probe import probe_provider, provider_facts
from billing.fleet.registered import read_registered
from billing.page import Order, page_of
from billing.refusals import Conflict, Invalid
from billing.usage.open_requests import read_open
from billing.wire.engine_kinds import KINDS, PROVIDER_CONCURRENCY, VLLM, is_provider
from billing.wire.instance_entry import InstanceEntry
from billing.wire.tokens import CounterPair

router = APIRouter(prefix="/admin/v1", tags=["instances"], dependencies=[KNOWN_QUERY])

Status = Literal["ready", "draining", "starting", "down"]
_CONCURRENCY_MAX: Final = 100_000
_BY_ID: Final[Order[InstanceEntry]] = Order("instances", lambda entry: (entry.instance,), (str,))


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no kind of engine is named {kind[:64]!r}; there are: {', '.join(KINDS)}")
    return kind


Kind = Annotated[str, AfterValidator(_known_kind), Field(json_schema_extra={"enum": [*KINDS]})]


class NewInstance(Body):
    """An engine that runs already, or another provider's API. `engine`: its kind. `key`: the key that it
    requires; a provider requires one. `engine_model`: its name for the model. `max_concurrency`: how many
    requests a provider may have at once. `force`: add it although it does not answer as it should.
    `priority`: it schedules by priority (vLLM: `--scheduling-policy priority`). This cannot be detected from
    outside, and other servers refuse a parameter that they do not know.
    """

    model: Name
    url: Annotated[str, Field(min_length=1, max_length=2048)]
    engine: Kind = VLLM
    engine_model: Text | None = None
    key: Text | None = None
    instance: Name | None = None
    max_concurrency: Annotated[int, Field(ge=1, le=_CONCURRENCY_MAX)] | None = None
    priority: bool = False
    force: bool = False

    def checked(self) -> "NewInstance":
        """With its base URL, and with a provider's defaults. Raises Invalid if the fields contradict each
        other.
        """
        url = check_url(self.url)
        if not is_provider(self.engine):
            if self.max_concurrency is not None:
                raise Invalid(
                    "Only a provider has a number of its own: what an engine of this kind can do is measured "
                    "(`taas calibrate`).",
                    param="max_concurrency",
                )
            return self.model_copy(update={"url": url})
        check_provider_url(url)
        if self.key is None:
            raise Invalid("A provider requires a key: give it with `--key-file FILE`.", param="key")
        if self.priority:
            raise Invalid("No provider schedules by our priorities.", param="priority")
        slots = self.max_concurrency or PROVIDER_CONCURRENCY
        return self.model_copy(update={"url": url, "max_concurrency": slots})


@router.post("/instances", status_code=201, response_model=InstanceAdded, responses={424: {"model": Refusal}})
def add(body: NewInstance, control: Control, response: Response) -> dict[str, Any]:
    """Probe an engine and, if it serves the model, send it requests from now on. Its counters so far become
    its baseline. A provider is only asked whether it takes the key and knows the model. The id of a removed
    instance may be used again once it has no open requests.
    """
    body = body.checked()
    url = body.url
    with control.reading() as connection:
        model = models.find(connection, body.model)
        instances.check_may_serve(model, body.engine)
        instances.check_free(connection, model.name, url, body.instance)
        by_hand = instances.shown_ids(connection)
        before = None if body.instance is None else instances.find_removed(connection, body.instance)
    _check_not_a_workers(control, by_hand, url, body.instance)
    if before is not None:
        _check_nothing_open(control, before)
    probe = _probe(control, body, model)
    with control.changing(response) as connection:
        if before is not None:
            close_run(connection, _as_counted(before), read_instance(control.http, _as_counted(before)))
        added = instances.add(
            connection,
            body.model,
            url,
            probe.facts,
            engine=body.engine,
            engine_key=body.key,
            engine_model=body.engine_model,
            instance_id=body.instance,
            priority=body.priority,
            max_concurrency=body.max_concurrency,
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
    answers = None if is_provider(removed.engine) else _answers(control, removed)
    return {**_shown(removed), "engine_answers": answers, "open_requests": _open_requests(control, removed)}


def _answers(control: ControlPlane, removed: AddedInstance) -> bool:
    reading = read_engine(control.http, removed.url, removed.engine_key)
    return not isinstance(reading, Unreachable) or reading.answers


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
        has_counters=not is_provider(instance.engine),
    )


def _probe(control: ControlPlane, body: NewInstance, model: models.Model) -> Probe:
    name = body.engine_model or model.engine_model
    try:
        if is_provider(body.engine):
            probe = probe_provider(control.http, body.engine, body.url, body.key or "", name)
            return replace(probe, warnings=(*probe.warnings, *_not_served(body.engine, model)))
        return probe_engine(control.http, body.url, body.key, name, model.context_tokens)
    except refusals.Unreachable as exc:
        if not body.force:
            raise
        if is_provider(body.engine):
            warnings = (exc.message, "Added all the same.", *_not_served(body.engine, model))
            return Probe(provider_facts(), warnings)
        return Probe(
            unprobed(), (exc.message, "Added all the same: its counters and abilities are not known.")
        )


def _not_served(kind: str, model: models.Model) -> tuple[str, ...]:
    """What the model offers and its instance of this kind does not."""
    missing = ", ".join(route for route in model.routes if route not in KINDS[kind].routes)
    if not missing:
        return ()
    return (
        f"It does not serve these routes of the model: {missing}. Requests there get 503 unless another "
        "instance serves them; `taas model set NAME --route …` names the routes that the model offers.",
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
        "engine": instance.engine,
        "engine_model": instance.engine_model,
        "max_concurrency": instance.max_concurrency,
        "routes": instance.routes,
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
        "engine": entry.engine,
        "engine_model": entry.engine_model,
        "max_concurrency": entry.max_concurrency,
        "status": entry.status.value,
        "routes": None if entry.routes is None else sorted(entry.routes),
        "own_user": entry.own_user,
        "abort": entry.abort,
        "priority": entry.priority,
        "epoch": entry.epoch,
        "lease_until_ms": entry.lease_until_ms,
        "added": "by hand" if entry.instance in by_hand else "by its worker",
        "removed": by_hand.get(entry.instance, False),
        "load": asdict(entry.load),
    }
