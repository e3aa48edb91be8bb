"""What a worker needs of a model's entry in the catalogue (MODEL in docs/interfaces.md §3). Pure."""

from dataclasses import dataclass, replace

import orjson

from billing.wire.routes import POOLING_ROUTES, TEXT_ROUTES, generates, pooling_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The part of a model's entry that decides how an engine is started and registered. `routes`: the names
    of its inference routes; of a part of a model, those of this part. `owner`: whose private model it is.
    """

    name: str
    pool: str
    cell: str
    engine_model: str
    context_tokens: int
    routes: frozenset[str]
    owner: str | None = None

    @property
    def generates(self) -> bool:
        """Whether it generates text; a model that only embeds does not."""
        return not self.routes or generates(self.routes)

    @property
    def engine_routes(self) -> frozenset[str]:
        """Every route that its engine serves, because an engine either generates or pools. The model may
        offer more of them while the engine runs.
        """
        return frozenset(TEXT_ROUTES if self.generates else POOLING_ROUTES)

    def pooling_part(self) -> "ServedModel":
        """What an engine serves that pools. Beside one that generates it is a pool of its own: neither can do
        the other's work, so what is measured, sold and reclaimed of the model's pool is not here. ValueError
        if the model offers nothing that it could serve.
        """
        if not self.generates:
            return self
        routes = self.routes & {name for name in POOLING_ROUTES if name not in TEXT_ROUTES}
        if not routes:
            raise ValueError(f"model {self.name} offers no route that an engine serves by pooling")
        return replace(self, routes=routes, pool=pooling_pool(self.pool))

    @classmethod
    def from_json(cls, raw: bytes | str) -> "ServedModel":
        """Read an entry of `taas:models`. ValueError if it is malformed, or the model is retired."""
        try:
            fields = orjson.loads(raw)
            if fields.get("status", "active") != "active":
                raise ValueError(f"model {fields['name']} is {fields['status']}")
            return cls(
                name=str(fields["name"]),
                pool=str(fields["pool"]),
                cell=str(fields["cell"]),
                engine_model=str(fields["engine_model"]),
                context_tokens=int(fields["context_tokens"]),
                routes=frozenset(fields.get("routes") or ()),
                owner=None if fields.get("owner") is None else str(fields["owner"]),
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a model's entry: {exc!r}") from exc
