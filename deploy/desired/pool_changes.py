"""What has to be done so that pools are as the file says: what of them is sold, launched and scaled."""

from collections.abc import Iterator
from typing import Final

from deploy.desired.document import Document, Entry
from deploy.desired.present import Present
from deploy.desired.step import Call, Step, Turn, all_new, changed
from deploy.desired.yaml_values import DocumentError

_POOLING: Final = "/pooling"
# What `PATCH pools` takes.
_SOLD: Final = ("instances", "headroom", "set_aside")


def pool_steps(document: Document, there: Present, *, prune: bool) -> Iterator[Step]:
    """Raises DocumentError."""
    if document.pools is None:
        return
    models = {name: there.models[name]["pool"] for name in there.models}
    models |= {name: entry.fields.get("pool", name) for name, entry in (document.models or {}).items()}
    for name, entry in document.pools.items():
        base = name.removesuffix(_POOLING)
        if name not in models.values() and base not in models.values():
            raise DocumentError(entry.place, f"there is no pool {name!r}: no model is in it")
        wanted = {key: value for key, value in entry.fields.items() if key in _SOLD}
        if wanted and name not in models.values():
            raise DocumentError(entry.place, f"of pool {name} nothing is sold: it can only have a launch")
        defaults = {"instances": 0, "headroom": "0.1", "set_aside": "0"}
        differs = changed(wanted, there.pools.get(name, defaults))
        if differs:
            yield Step(
                turn=Turn.POOL,
                action="change",
                what="pool",
                name=name,
                place=entry.place,
                fields=differs,
                calls=(Call(method="PATCH", path=("pools", name), body={f: new for f, _, new in differs}),),
            )
        if "launch" in entry.fields:
            yield from _launch(entry, models, there)
        if "autoscale" in entry.fields:
            yield from _autoscale(entry, there)
    if prune:
        yield from _pruned(document.pools, there)


def _pruned(pools: dict[str, Entry], there: Present) -> Iterator[Step]:
    kinds = (
        ("autoscale", "autoscaling", "autoscaling", there.autoscaling, ""),
        ("launch", "launch", "launches", there.launches, "its instances drain and stop"),
    )
    for field, what, path, names, note in kinds:
        for name in names:
            if name not in pools or field not in pools[name].fields:
                yield Step(
                    turn=Turn.LAUNCH_REMOVED,
                    action="delete",
                    what=what,
                    name=name,
                    place=None,
                    note=note,
                    calls=(Call(method="DELETE", path=(path, name)),),
                )


def _autoscale(entry: Entry, there: Present) -> Iterator[Step]:
    wanted, now = entry.fields["autoscale"], there.autoscaling.get(entry.name)
    differs = all_new(wanted) if now is None else changed(wanted, now)
    if differs:
        yield Step(
            turn=Turn.LAUNCH,
            action="create" if now is None else "change",
            what="autoscaling",
            name=entry.name,
            place=entry.at("autoscale"),
            fields=differs,
            calls=(Call(method="PUT", path=("autoscaling", entry.name), body=wanted),),
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
    differs = all_new(wanted) if now is None else changed(wanted, now)
    if not differs:
        return
    fewer = now is not None and wanted["instances"] < now["instances"]
    yield Step(
        turn=Turn.LAUNCH_REMOVED if fewer else Turn.LAUNCH,
        action="create" if now is None else "change",
        what="launch",
        name=pool,
        place=place,
        fields=differs,
        note="those that are too many drain and stop" if fewer else "",
        calls=(Call(method="PUT", path=("launches", pool), body=wanted),),
    )
