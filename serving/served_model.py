"""What a worker needs of a model's entry in the catalogue (MODEL in docs/interfaces.md §3). Pure."""

from dataclasses import dataclass

import orjson

from billing.wire.routes import generates


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The part of a model's entry that decides how an engine is started and registered. `routes`: the names
    of its inference routes.
    """

    name: str
    pool: str
    cell: str
    engine_model: str
    context_tokens: int
    routes: frozenset[str]

    @property
    def generates(self) -> bool:
        """Whether it generates text; a model that only embeds does not."""
        return not self.routes or generates(self.routes)

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
            )
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a model's entry: {exc!r}") from exc
