"""What launchers are to run, in SQL: so many instances of a pool, started so. It starts nothing."""

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, select
from sqlalchemy.dialects.postgresql import insert

from billing.catalogue import models
from billing.refusals import Conflict, Invalid, NotFound
from billing.schema.capacity import launch as table
from billing.wire.routes import generates, pooling_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """`instances` of `model`, each on `nodes` machines with `gpus` and `resources` a machine. `path`: the
    folder of the model's files there, None where a worker looks by itself.
    """

    pool: str
    model: str
    instances: int
    gpus: int = 0
    nodes: int = 1
    resources: dict[str, int]
    path: str | None = None
    engine_args: tuple[str, ...] = ()


def put(connection: Connection, launch: Launch) -> Launch:
    """Set it, in place of what was there. Raises NotFound for the model, Conflict where its instances are in
    another pool or where it is retired.
    """
    model = models.find(connection, launch.model)
    both = generates(model.routes)
    there = [model.pool, *([pooling_pool(model.pool)] if both else [])]
    if launch.pool not in there:
        raise Conflict(
            f"Instances of {launch.model!r} are in pool {' or '.join(map(repr, there))}, not in "
            f"{launch.pool!r}.",
            param="model",
        )
    if model.status != "active":
        raise Conflict(f"Model {launch.model!r} is {model.status}: nothing is launched of it.", param="model")
    if launch.nodes > 1 and launch.gpus == 0:
        raise Invalid("An instance over several nodes needs GPUs on each.", param="gpus")
    values: dict[str, Any] = {**asdict(launch), "engine_args": [*launch.engine_args]}
    statement = insert(table).values(values)
    connection.execute(statement.on_conflict_do_update(index_elements=["pool"], set_=values))
    return launch


def list_all(connection: Connection) -> list[Launch]:
    """By pool."""
    return [_launch(row) for row in connection.execute(select(table).order_by(table.c.pool))]


def remove(connection: Connection, pool: str) -> Launch:
    """Nothing of this pool is launched any more. Raises NotFound."""
    row = connection.execute(delete(table).where(table.c.pool == pool).returning(*table.c)).one_or_none()
    if row is None:
        raise NotFound(f"Nothing of pool {pool!r} is launched.", param="pool")
    return _launch(row)


def _launch(row: Row[Any]) -> Launch:
    fields = dict(row._mapping)
    return Launch(**{**fields, "engine_args": tuple(fields["engine_args"])})
