"""The file of desired state: which fields its nouns have, and how they are read. It asks nobody: whether what
it names is there is seen when it is compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from billing.wire.engine_kinds import PROVIDERS
from billing.wire.routes import OFFERED_ROUTES
from deploy.desired.yaml_values import (
    DocumentError,
    Place,
    Reader,
    Value,
    counts,
    decimal,
    either,
    entries,
    fields,
    inner,
    many,
    moment_ms,
    one_of,
    parse,
    part,
    text,
    whole,
    yes_or_no,
)

MODEL: Final[Mapping[str, Reader]] = {
    "context_tokens": whole,
    "visible": either(one_of("everyone", "internal"), many(text)),
    "owner": text,
    "routes": many(one_of(*OFFERED_ROUTES)),
    "engine_model": text,
    "vocabulary_tokens": whole,
    "default_max_tokens": whole,
    "weights": inner("weights", dict.fromkeys(("w_in_mu", "w_cached_mu", "w_out_mu"), whole)),
    "chat_template_kwargs": many(text),
    "pool": text,
    "max_body_bytes": whole,
    "status": one_of("active", "retired"),
}
LAUNCH: Final[Mapping[str, Reader]] = {
    "model": text,
    "instances": whole,
    "gpus": whole,
    "nodes": whole,
    "resources": counts("resources"),
    "path": text,
    "engine_args": many(text),
}


def _launch(value: Value) -> dict[str, Any]:
    found, _ = fields(value, "launch", LAUNCH)
    if "instances" not in found:
        raise value.wrong("launch needs instances: how many of them")
    return {"gpus": 0, "nodes": 1, "resources": {}, "path": None, "engine_args": (), **found}


def _autoscale(value: Value) -> dict[str, Any]:
    found, _ = fields(value, "autoscale", {"min": whole, "max": whole})
    if set(found) != {"min", "max"}:
        raise value.wrong("autoscale needs min and max")
    return found


ADAPTER: Final[Mapping[str, Reader]] = {"path": text, "owner": text}
POOL: Final[Mapping[str, Reader]] = {
    "instances": whole,
    "headroom": part,
    "set_aside": decimal,
    "launch": _launch,
    "autoscale": _autoscale,
}
INSTANCE: Final[Mapping[str, Reader]] = {
    "model": text,
    "url": text,
    "provider": one_of(*PROVIDERS),
    "key_file": text,
    "engine_model": text,
    "max_concurrency": whole,
    "priority": yes_or_no,
}
AMOUNTS: Final = ("input", "cached_input", "cache_write", "output")
PRICE: Final[Mapping[str, Reader]] = {
    **dict.fromkeys(AMOUNTS, decimal),
    "free": yes_or_no,
    "from": moment_ms,
}
COST_PRICE: Final[Mapping[str, Reader]] = {"instance": text, **PRICE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing of the file: what is given of it, and where."""

    name: str
    place: Place
    fields: dict[str, Any]
    places: dict[str, Place] = field(default_factory=dict)

    def at(self, name: str) -> Place:
        """The line of a field; the entry's own where it is not given."""
        return self.places.get(name, self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Sections by name. One that the file does not have is None: nothing of it is touched. `prices`: those of
    a model, in the order of the file; `cost_prices`: what providers charge.
    """

    folder: Path
    models: dict[str, Entry] | None
    adapters: dict[str, Entry] | None
    pools: dict[str, Entry] | None
    instances: dict[str, Entry] | None
    prices: dict[str, list[Entry]] | None
    cost_prices: dict[str, list[Entry]] | None


_SECTIONS: Final = ("models", "adapters", "pools", "instances", "prices", "cost_prices")


def read(path: Path) -> Document:
    """Raises DocumentError, with file and line."""
    whole_file = parse(path)
    if whole_file is None:
        raise DocumentError(Place(path, 1), "is empty")
    found: dict[str, Any] = dict.fromkeys(
        ("models", "adapters", "pools", "instances", "prices", "cost_prices")
    )
    for name, key, given in entries(whole_file, "the file"):
        if name not in found:
            raise key.wrong(f"there is no section {name!r}; there are: {', '.join(found)}")
        found[name] = _section(name, given)
    return Document(folder=path.parent, **found)


_NOUNS: Final = {
    "models": ("a model", MODEL),
    "adapters": ("an adapter", ADAPTER),
    "pools": ("a pool", POOL),
    "instances": ("an instance", INSTANCE),
}
_NEEDED: Final = {
    "a model": ("context_tokens",),
    "an adapter": ("path", "owner"),
    "an instance": ("model", "url"),
}


def _section(section: str, value: Value) -> dict[str, Any]:
    if section in {"prices", "cost_prices"}:
        readers = PRICE if section == "prices" else COST_PRICE
        return {name: _prices(name, given, readers) for name, _, given in entries(value, section)}
    what, readers = _NOUNS[section]
    return {name: _entry(name, key, given, what, readers) for name, key, given in entries(value, section)}


def _entry(name: str, key: Value, given: Value, what: str, readers: Mapping[str, Reader]) -> Entry:
    found, places = fields(given, what, readers)
    for needed in _NEEDED.get(what, ()):
        if needed not in found:
            raise key.wrong(f"{what} needs {needed}")
    return Entry(name=name, place=key.place, fields=found, places=places)


def _prices(model: str, value: Value, readers: Mapping[str, Reader]) -> list[Entry]:
    if not isinstance(value.node, yaml.SequenceNode):
        raise value.wrong("the prices of a model are a list: - {input: …, output: …}")
    found = []
    for node in value.node.value:
        given = Value(node, value.path)
        values, places = fields(given, "a price", readers)
        if values.pop("free", False):
            if set(values) & set(AMOUNTS):
                raise given.wrong("a price that is free has no amounts")
            values |= dict.fromkeys(AMOUNTS, "0")
        if "input" not in values or "output" not in values:
            raise given.wrong("a price needs input and output, or free: true")
        for name in ("cached_input", "cache_write"):
            values.setdefault(name, values["input"])
        values.setdefault("from", None)
        found.append(Entry(name=model, place=given.place, fields=values, places=places))
    starts = [(entry.fields.get("instance"), entry.fields["from"]) for entry in found]
    for number, entry in enumerate(found):
        if starts.index(starts[number]) != number:
            raise DocumentError(entry.place, "another price of this model begins at the same moment")
    return found
