"""Routes of launches: what a launcher is to run. It reads them; nothing here starts an engine."""

import re
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field

from billing.api.answer import Listing
from billing.api.capacity_answers import LaunchAnswer, LaunchNow
from billing.api.control import Control
from billing.api.fields import Body, Name, NamePath
from billing.api.paging import PageQuery, listing
from billing.api.query import KNOWN_QUERY
from billing.autoscaling import store
from billing.catalogue import launches
from billing.catalogue.launches import Launch
from billing.page import Order, page_of

router = APIRouter(prefix="/admin/v1/launches", tags=["launches"], dependencies=[KNOWN_QUERY])

Count = Annotated[int, Field(ge=0, le=10_000)]
_RESOURCE: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}", re.ASCII)


def _named(resources: dict[str, int]) -> dict[str, int]:
    for name in resources:
        if _RESOURCE.fullmatch(name) is None:
            raise ValueError("the name of a resource is 1 to 64 of the characters A-Z a-z 0-9 _ . : / -")
    return resources


Resources = Annotated[
    dict[str, Annotated[int, Field(ge=1, le=10_000)]], Field(max_length=16), AfterValidator(_named)
]
Word = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f\x7f]+$")]
_BY_POOL: Final[Order[Launch]] = Order("launches", lambda each: (each.pool,), (str,))


class NewLaunch(Body):
    """`instances` of `model`, each on `nodes` machines with `gpus` GPUs and `resources` (names of the
    launcher's) a machine. `path`: the folder of the model's files there. `engine_args`: more words for vLLM.
    """

    model: Name
    instances: Count
    gpus: Count = 0
    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    resources: Resources = Field(default_factory=dict)
    path: Word | None = None
    engine_args: Annotated[tuple[Word, ...], Field(max_length=64, strict=False)] = ()


@router.get("", response_model=Listing[LaunchNow])
def list_all(
    control: Control,
    asked: PageQuery,
    model: Annotated[Name | None, Query(description="Of this model only.")] = None,
) -> dict[str, Any]:
    """What launchers are to run, by pool."""
    with control.reading() as connection:
        desired = {each.pool: each.decision.instances for each in store.list_all(connection) if each.decision}
        of_model = [each for each in launches.list_all(connection) if model in {None, each.model}]
        found = page_of(of_model, _BY_POOL, asked)
    return listing(found, lambda each: asdict(each) | {"wanted": desired.get(each.pool, each.instances)})


@router.put("/{pool:path}", response_model=LaunchAnswer)
def put(pool: NamePath, body: NewLaunch, control: Control, response: Response) -> dict[str, Any]:
    """Set what launchers are to run of this pool, as a whole. A launcher that runs makes it true: it starts
    what is missing, and drains and stops what is too much.
    """
    wanted = Launch(
        pool=pool,
        model=body.model,
        instances=body.instances,
        gpus=body.gpus,
        nodes=body.nodes,
        resources=body.resources,
        path=body.path,
        engine_args=body.engine_args,
    )
    with control.changing(response) as connection:
        return asdict(launches.put(connection, wanted))


@router.delete("/{pool:path}", response_model=LaunchAnswer)
def remove(pool: NamePath, control: Control, response: Response) -> dict[str, Any]:
    """Nothing of this pool is launched any more: its launcher drains and stops what it has started."""
    with control.changing(response) as connection:
        return asdict(launches.remove(connection, pool))
