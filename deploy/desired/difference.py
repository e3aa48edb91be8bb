"""What has to be done so that the file is true, in the order of dependencies. It does nothing itself."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

from deploy.desired.document import Document, Entry
from deploy.desired.present import Present
from deploy.desired.yaml_values import DocumentError, Place

_POOLING: Final = "/pooling"
# What a model keeps for as long as it is there.
_KEPT: Final = ("owner", "pool")
_SETS: Final = ("routes", "chat_template_kwargs")
# As `taas price set` asks about.
_MUCH: Final = 10

Action = Literal["create", "change", "replace", "delete"]


class Turn(IntEnum):
    """What comes first: what others need. What takes capacity away comes last."""

    MODEL = 0
    POOL = 1
    PRICE = 2
    LAUNCH = 3
    INSTANCE = 4
    INSTANCE_REPLACED = 5
    INSTANCE_REMOVED = 6
    LAUNCH_REMOVED = 7
    MODEL_RETIRED = 8
    PRICE_WITHDRAWN = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the admin API. `drains`: it is repeated until no request is open there."""

    method: str
    path: tuple[str, ...]
    body: dict[str, Any] | None = None
    drains: bool = False
    key_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change. `fields`: name, before, after; None where it is not."""

    turn: Turn
    action: Action
    what: str
    name: str
    place: Place | None
    fields: list[tuple[str, Any, Any]] = field(default_factory=list)
    note: str = ""
    calls: tuple[Call, ...]


def steps(document: Document, there: Present, *, prune: bool) -> list[Step]:
    """In the order in which they are to be carried out. Raises DocumentError for what cannot be."""
    found = [
        *_models(document, there, prune=prune),
        *_pools(document, there, prune=prune),
        *_prices(document, there, prune=prune),
        *_instances(document, there, prune=prune),
    ]
    return sorted(found, key=lambda step: step.turn)


def _models(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    if document.models is None:
        return
    for name, entry in document.models.items():
        wanted = _with_ids({"status": "active", **entry.fields}, there)
        now = there.models.get(name)
        if now is None:
            yield _new_model(entry, wanted)
            continue
        changed = _changed(wanted, now)
        for kept, before, after in changed:
            if kept in _KEPT:
                raise DocumentError(
                    entry.at(kept), f"the {kept} of model {name} is {before} for good, and cannot be {after}"
                )
        if changed:
            retired = ("status", "active", "retired") in changed
            yield Step(
                turn=Turn.MODEL_RETIRED if retired else Turn.MODEL,
                action="change",
                what="model",
                name=name,
                place=entry.place,
                fields=changed,
                calls=(Call(method="PATCH", path=("models", name), body={f: new for f, _, new in changed}),),
            )
    for name, now in there.models.items() if prune else ():
        if name not in document.models and now["status"] == "active":
            yield Step(
                turn=Turn.MODEL_RETIRED,
                action="delete",
                what="model",
                name=name,
                place=None,
                note="it is retired: its requests get 404",
                calls=(Call(method="PATCH", path=("models", name), body={"status": "retired"}),),
            )


def _with_ids(fields: dict[str, Any], there: Present) -> dict[str, Any]:
    """With tenants by id, as the admin API shows them."""
    found = dict(fields)
    if not isinstance(found.get("visible", ""), str):
        found["visible"] = tuple(sorted({there.tenants[name] for name in found["visible"]}))
    if "owner" in found:
        found["owner"] = there.tenants[found["owner"]]
    return found


def _new_model(entry: Entry, wanted: dict[str, Any]) -> Step:
    body = {name: value for name, value in wanted.items() if name != "status"}
    calls = [Call(method="POST", path=("models",), body={"name": entry.name, **body})]
    if wanted["status"] == "retired":
        calls.append(Call(method="PATCH", path=("models", entry.name), body={"status": "retired"}))
    return Step(
        turn=Turn.MODEL,
        action="create",
        what="model",
        name=entry.name,
        place=entry.place,
        fields=_all_new(entry.fields),
        calls=tuple(calls),
    )


def _pools(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    if document.pools is None:
        return
    models = {name: there.models[name]["pool"] for name in there.models}
    models |= {name: entry.fields.get("pool", name) for name, entry in (document.models or {}).items()}
    launched = set()
    for name, entry in document.pools.items():
        base = name.removesuffix(_POOLING)
        if name not in models.values() and base not in models.values():
            raise DocumentError(entry.place, f"there is no pool {name!r}: no model is in it")
        wanted = {key: value for key, value in entry.fields.items() if key != "launch"}
        if wanted and name not in models.values():
            raise DocumentError(entry.place, f"of pool {name} nothing is sold: it can only have a launch")
        defaults = {"instances": 0, "headroom": "0.1", "set_aside": "0"}
        changed = _changed(wanted, there.pools.get(name, defaults))
        if changed:
            yield Step(
                turn=Turn.POOL,
                action="change",
                what="pool",
                name=name,
                place=entry.place,
                fields=changed,
                calls=(Call(method="PATCH", path=("pools", name), body={f: new for f, _, new in changed}),),
            )
        if "launch" in entry.fields:
            launched.add(name)
            yield from _launch(entry, models, there)
    for name in there.launches if prune else ():
        if name not in launched:
            yield Step(
                turn=Turn.LAUNCH_REMOVED,
                action="delete",
                what="launch",
                name=name,
                place=None,
                note="its instances drain and stop",
                calls=(Call(method="DELETE", path=("launches", name)),),
            )


def _launch(entry: Entry, models: dict[str, str], there: Present) -> Iterator[Step]:
    place, pool = entry.at("launch"), entry.name
    wanted = {"model": pool.removesuffix(_POOLING), **entry.fields["launch"]}
    if wanted["model"] not in models:
        named = "model" in entry.fields["launch"]
        raise DocumentError(
            place,
            f"there is no model {wanted['model']!r}"
            if named
            else "name the model that is launched: `model: …`",
        )
    now = there.launches.get(pool)
    changed = _all_new(wanted) if now is None else _changed(wanted, now)
    if not changed:
        return
    fewer = now is not None and wanted["instances"] < now["instances"]
    yield Step(
        turn=Turn.LAUNCH_REMOVED if fewer else Turn.LAUNCH,
        action="create" if now is None else "change",
        what="launch",
        name=pool,
        place=place,
        fields=changed,
        note="those that are too many drain and stop" if fewer else "",
        calls=(Call(method="PUT", path=("launches", pool), body=wanted),),
    )


def _instances(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    if document.instances is None:
        return
    known = {*there.models, *(document.models or ())}
    for name, entry in document.instances.items():
        if entry.fields["model"] not in known:
            raise DocumentError(entry.at("model"), f"there is no model {entry.fields['model']!r}")
        if name in there.workers:
            raise DocumentError(entry.place, f"{name} is an instance of a worker already")
        wanted = {**entry.fields, "url": _base_url(entry)}
        key_file = wanted.pop("key_file", None)
        path = None if key_file is None else document.folder / key_file
        now = there.instances.get(name)
        changed = _all_new(entry.fields) if now is None else _changed(wanted, now)
        if not changed:
            continue
        if wanted.get("provider") and path is None:
            raise DocumentError(entry.place, "a provider requires a key: `key_file: …`")
        add = Call(method="POST", path=("instances",), body=_new_instance(name, wanted), key_file=path)
        remove = Call(method="DELETE", path=("instances", name), drains=True)
        yield Step(
            turn=Turn.INSTANCE if now is None else Turn.INSTANCE_REPLACED,
            action="create" if now is None else "replace",
            what="instance",
            name=name,
            place=entry.place,
            fields=changed,
            note="" if now is None else "its open requests end, then it is added anew",
            calls=(add,) if now is None else (remove, add),
        )
    for name in there.instances if prune else ():
        if name not in document.instances:
            yield Step(
                turn=Turn.INSTANCE_REMOVED,
                action="delete",
                what="instance",
                name=name,
                place=None,
                note="it gets no new requests, and its open ones end",
                calls=(Call(method="DELETE", path=("instances", name), drains=True),),
            )


def _base_url(entry: Entry) -> str:
    from billing.catalogue.instances import check_provider_url, check_url
    from billing.refusals import Invalid

    try:
        url = check_url(entry.fields["url"])
        if "provider" in entry.fields:
            check_provider_url(url)
    except Invalid as exc:
        raise DocumentError(entry.at("url"), exc.message) from exc
    return url


def _new_instance(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in wanted.items() if key != "provider"}
    kind = {"engine": wanted["provider"]} if wanted.get("provider") else {}
    return {"instance": name, **body, **kind}


def _prices(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    known = {*there.models, *(document.models or ())}
    for model, listed in (document.prices or {}).items():
        if model not in known and listed:
            raise DocumentError(listed[0].place, f"there is no model {model!r}")
        rows = there.prices.get(model, [])
        # One without a moment holds until the first of the others.
        past = [entry for entry in listed if (entry.fields["from"] or 0) <= there.now_ms]
        held = [row for row in rows if row["from"] <= there.now_ms]
        if past:
            latest = max(past, key=lambda entry: entry.fields["from"] or 0)
            before = held[-1] if held else None
            start = None if held else latest.fields["from"]
            yield from _price(model, latest, before, start)
        for entry in listed:
            if entry not in past:
                at_once = [row for row in rows if row["from"] == entry.fields["from"]]
                yield from _price(model, entry, at_once[0] if at_once else None, entry.fields["from"])
        wanted = {entry.fields["from"] for entry in listed}
        for row in rows if prune else ():
            if row["from"] > there.now_ms and row["from"] not in wanted:
                yield Step(
                    turn=Turn.PRICE_WITHDRAWN,
                    action="delete",
                    what="price",
                    name=model,
                    place=None,
                    fields=[("from", rfc3339(row["from"]), None)],
                    calls=(Call(method="DELETE", path=("prices", str(row["price_id"]))),),
                )


def _price(model: str, entry: Entry, before: dict[str, Any] | None, start: int | None) -> Iterator[Step]:
    amounts = {name: entry.fields[name] for name in ("input", "cached_input", "cache_write", "output")}
    changed = _all_new(amounts) if before is None else _changed(amounts, before)
    if not changed:
        return
    much = [name for name, old, new in changed if old is not None and _is_much(old, new)]
    begins = {} if start is None else {"from": start}
    yield Step(
        turn=Turn.PRICE,
        action="create" if before is None else "change",
        what="price",
        name=model,
        place=entry.place,
        fields=[*changed, ("from", None, "now" if start is None else rfc3339(start))],
        note=f"by more than {_MUCH} times: {', '.join(much)}" if much else "",
        calls=(
            Call(
                method="POST", path=("prices",), body={"model": model, **amounts, **begins, "confirmed": True}
            ),
        ),
    )


def _is_much(old: str, new: str) -> bool:
    low, high = sorted((float(old), float(new)))
    return high > _MUCH * low


def rfc3339(moment_ms: int) -> str:
    """In UTC."""
    from billing.moments import utc

    return utc(moment_ms)


def _changed(wanted: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Fields that are given and differ. Lists of names are sets."""
    return [
        (name, now[name], new)
        for name, new in wanted.items()
        if (set(now[name]) != set(new) if name in _SETS else now[name] != new)
    ]


def _all_new(fields: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, None, value) for name, value in fields.items()]
