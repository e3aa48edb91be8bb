"""Routes of adapters. What else there is to say of one is said of the model that it is."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from billing.api.answer import Listing
from billing.api.catalogue_answers import AdapterAnswer
from billing.api.control import Control
from billing.api.fields import Body, ModelPath, Name, Text
from billing.api.paging import PageQuery
from billing.api.query import KNOWN_QUERY
from billing.catalogue import adapters, tenants
from billing.catalogue.adapters import Adapter, AdapterSpec
from billing.fleet.registered import read_registered
from billing.wire.instance_entry import FILES_SEPARATOR, InstanceEntry

router = APIRouter(prefix="/admin/v1/adapters", tags=["adapters"], dependencies=[KNOWN_QUERY])


class NewAdapter(Body):
    """A LoRA adapter of `model`: the model `MODEL:NAME`, which only its owner can see. It starts with the
    weights, the text routes and the context of its base. `path`: the folder of its files on the machines of
    the workers of `model`.
    """

    model: Name
    name: Name
    path: Text
    owner: Name


class AdapterChange(Body):
    """`path`: the folder of its new files."""

    path: Text


@router.post("", status_code=201, response_model=AdapterAnswer)
def create(body: NewAdapter, control: Control, response: Response) -> dict[str, Any]:
    """Add an adapter. Workers of its base that take adapters load it within seconds."""
    spec = AdapterSpec(base=body.model, name=body.name, path=body.path, owner=body.owner)
    with control.changing(response) as connection:
        made = adapters.create(connection, spec)
        return _shown(made, tenants.names(connection, [made.owner]), ())


@router.get("", response_model=Listing[AdapterAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    model: Annotated[Name | None, Query(description="Of this base only.")] = None,
) -> dict[str, Any]:
    """Adapters by name, including retired ones, with the instances that have loaded them."""
    with control.reading() as connection:
        found = adapters.list_page(connection, asked, model)
        names = tenants.names(connection, {each.owner for each in found.rows})
    registered = read_registered(control.redis)
    return {"data": [_shown(each, names, registered) for each in found.rows], "next": found.next}


@router.patch("/{name:path}", response_model=AdapterAnswer)
def change(name: ModelPath, body: AdapterChange, control: Control, response: Response) -> dict[str, Any]:
    """Have workers load it from another folder: new weights under the same name."""
    with control.changing(response) as connection:
        made = adapters.change_path(connection, name, body.path)
        names = tenants.names(connection, [made.owner])
    return _shown(made, names, ())


def _shown(adapter: Adapter, names: Mapping[str, str], registered: Iterable[InstanceEntry]) -> dict[str, Any]:
    name, there = adapter.model, list(registered)
    return {
        "model": name,
        "base": adapter.base,
        "path": adapter.path,
        "owner": adapter.owner,
        "owner_name": names[adapter.owner],
        "status": adapter.status,
        "loaded": {
            entry.instance: entry.adapters[name].rpartition(FILES_SEPARATOR)[2]
            for entry in there
            if name in entry.adapters
        },
        "refused": {
            entry.instance: entry.refused_adapters[name] for entry in there if name in entry.refused_adapters
        },
        "created_ms": adapter.created_ms,
    }
