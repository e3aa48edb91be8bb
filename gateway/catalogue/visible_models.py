"""Which models each tenant may see. Pure.

A look-up takes the same steps for a model that does not exist and for one that is not this tenant's, so that
not even the time that it takes tells them apart.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from gateway.catalogue.entries import Model, Tenant

_NONE: Final[Mapping[str, Model]] = MappingProxyType({})


class VisibleModels:
    """Of one reading of the catalogue. Retired models are left out."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        everyone: dict[str, Model] = {}
        internal: dict[str, Model] = {}
        self._of_tenant: dict[str, dict[str, Model]] = {}
        self._of_kind: dict[str, dict[str, Model]] = {"external": everyone, "internal": internal}
        for model in models.values():
            if not model.active:
                continue
            audience = model.audience
            if isinstance(audience, frozenset):
                for tenant in audience:
                    self._of_tenant.setdefault(tenant, {})[model.name] = model
            elif audience == "everyone":
                everyone[model.name] = internal[model.name] = model
            elif audience == "internal":
                internal[model.name] = model

    def find(self, tenant: Tenant, name: str) -> Model | None:
        """The model of this name, if the tenant may see it once it is for sale."""
        own = self._of_tenant.get(tenant.tenant, _NONE).get(name)
        shared = self._of_kind.get(tenant.kind, _NONE).get(name)
        return own or shared

    def of(self, tenant: Tenant) -> Iterator[Model]:
        """All that the tenant may see once they are for sale."""
        yield from self._of_tenant.get(tenant.tenant, _NONE).values()
        yield from self._of_kind.get(tenant.kind, _NONE).values()

    def audiences(self) -> Iterator[tuple[str, Mapping[str, Model]]]:
        """The models of each kind of tenants, and those of single tenants."""
        yield from self._of_kind.items()
        yield from self._of_tenant.items()
