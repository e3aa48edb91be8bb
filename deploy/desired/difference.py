"""What has to be done so that the file is true, in the order of dependencies. It does nothing itself."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.desired.document import Document, Entry
from deploy.desired.pool_changes import pool_steps
from deploy.desired.present import Present
from deploy.desired.price_changes import COST, SALE, price_steps
from deploy.desired.step import Call, Step, Turn, all_new, changed
from deploy.desired.yaml_values import DocumentError

# What a model keeps for as long as it is there.
_KEPT: Final = ("owner", "pool")


def steps(document: Document, there: Present, *, prune: bool) -> list[Step]:
    """In the order in which they are to be carried out. Raises DocumentError for what cannot be."""
    found = [
        *_models(document, there, prune=prune),
        *_adapters(document, there, prune=prune),
        *pool_steps(document, there, prune=prune),
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
        differs = changed(wanted, now)
        for kept, before, after in differs:
            if kept in _KEPT:
                raise DocumentError(
                    entry.at(kept), f"the {kept} of model {name} is {before} for good, and cannot be {after}"
                )
        if differs:
            retired = ("status", "active", "retired") in differs
            yield Step(
                turn=Turn.MODEL_RETIRED if retired else Turn.MODEL,
                action="change",
                what="model",
                name=name,
                place=entry.place,
                fields=differs,
                calls=(Call(method="PATCH", path=("models", name), body={f: new for f, _, new in differs}),),
            )
    for name, now in there.models.items() if prune else ():
        if name not in document.models and now["status"] == "active":
            yield _retired("model", name)


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
        fields=all_new(entry.fields),
        calls=tuple(calls),
    )


def _adapters(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    for name, entry in (document.adapters or {}).items():
        base, _, short = name.partition(":")
        if base not in {*there.models, *(document.models or ())} or not short:
            raise DocumentError(entry.place, f"an adapter is BASE:NAME, and there is no model {base!r}")
        wanted = {"path": entry.fields["path"], "owner": there.tenants[entry.fields["owner"]]}
        now = there.adapters.get(name)
        if now is None:
            body = {"model": base, "name": short, **wanted}
            calls = [Call(method="POST", path=("adapters",), body=body)]
            differs = all_new(entry.fields)
        else:
            differs = changed({**wanted, "status": "active"}, now)
            if any(field == "owner" for field, _, _ in differs):
                raise DocumentError(entry.at("owner"), f"the owner of adapter {name} is its owner for good")
            given = {field: new for field, _, new in differs}
            paths = [("adapters", {"path": given.get("path")}), ("models", {"status": given.get("status")})]
            calls = [
                Call(method="PATCH", path=(noun, name), body=body)
                for noun, body in paths
                if None not in body.values()
            ]
        if differs:
            yield Step(
                turn=Turn.ADAPTER,
                action="create" if now is None else "change",
                what="adapter",
                name=name,
                place=entry.place,
                fields=differs,
                calls=tuple(calls),
            )
    kept = document.adapters
    for name, now in there.adapters.items() if prune and kept is not None else ():
        if name not in (kept or ()) and now["status"] == "active":
            yield _retired("adapter", name)


def _retired(what: str, name: str) -> Step:
    return Step(
        turn=Turn.MODEL_RETIRED,
        action="delete",
        what=what,
        name=name,
        place=None,
        note="it is retired: its requests get 404",
        calls=(Call(method="PATCH", path=("models", name), body={"status": "retired"}),),
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
        differs = all_new(entry.fields) if now is None else changed(wanted, now)
        if not differs:
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
            fields=differs,
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
    known = {*there.models, *there.adapters, *(document.models or ()), *(document.adapters or ())}
    instances = {*there.instances, *(document.instances or ())}
    for book, listed, rows in (
        (SALE, document.prices, there.prices),
        (COST, document.cost_prices, there.cost_prices),
    ):
        for model, entries in (listed or {}).items():
            if model not in known and entries:
                raise DocumentError(entries[0].place, f"there is no model {model!r}")
            for entry in entries:
                name = entry.fields.get("instance")
                if name is not None and name not in instances:
                    raise DocumentError(entry.at("instance"), f"there is no instance {name!r}")
            yield from price_steps(book, model, entries, rows.get(model, []), there.now_ms, prune=prune)
