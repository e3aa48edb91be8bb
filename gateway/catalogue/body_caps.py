"""The largest request body: as the model's entry says or, before the model is known, as the largest visible
model allows.
"""

from gateway.catalogue.entries import Model, Tenant
from gateway.catalogue.feed import Catalogue
from gateway.catalogue.visible_models import VisibleModels


class BodyCaps:
    """The caps of one process. `default_bytes`: for models that name none. `most_bytes`: the most that the
    process can receive.
    """

    def __init__(self, catalogue: Catalogue, default_bytes: int, most_bytes: int) -> None:
        self._catalogue = catalogue
        self._default_bytes = default_bytes
        self._most_bytes = most_bytes
        self._read_from: VisibleModels | None = None
        # The largest, by kind of tenants and by tenant; ids of tenants are no kinds.
        self._largest: dict[str, int] = {}

    def of_model(self, model: Model) -> int:
        """The cap once the model is known."""
        wanted = self._default_bytes if model.max_body_bytes is None else model.max_body_bytes
        return min(wanted, self._most_bytes)

    def of_tenant(self, tenant: Tenant) -> int:
        """The cap while only the caller is known; the default if the tenant sees no model."""
        visible = self._catalogue.visible
        if visible is not self._read_from:
            self._read_from = visible
            self._largest = {
                audience: max(map(self.of_model, models.values()))
                for audience, models in visible.audiences()
                if models
            }
        largest = max(self._largest.get(tenant.kind, 0), self._largest.get(tenant.tenant, 0))
        return largest or min(self._default_bytes, self._most_bytes)
