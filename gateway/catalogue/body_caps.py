"""The largest request body: as the model's entry says or, before the model is known, as the largest visible
model allows.
"""

from gateway.catalogue.entries import Model, Tenant
from gateway.catalogue.feed import Catalogue


class BodyCaps:
    """The caps of one process. `default_bytes`: for models that name none. `most_bytes`: the most that the
    process can receive.
    """

    def __init__(self, catalogue: Catalogue, default_bytes: int, most_bytes: int) -> None:
        self._catalogue = catalogue
        self._default_bytes = default_bytes
        self._most_bytes = most_bytes
        self._sorted_from: dict[str, Model] | None = None
        self._largest_first: list[tuple[int, Model]] = []

    def of_model(self, model: Model) -> int:
        """The cap once the model is known."""
        wanted = self._default_bytes if model.max_body_bytes is None else model.max_body_bytes
        return min(wanted, self._most_bytes)

    def of_tenant(self, tenant: Tenant) -> int:
        """The cap while only the caller is known; the default if the tenant sees no model."""
        models = self._catalogue.models
        if models is not self._sorted_from:
            self._sorted_from = models
            # Among equal caps, models that everyone sees come first, so that the search is short.
            self._largest_first = sorted(
                ((self.of_model(model), model) for model in models.values()),
                key=lambda entry: (-entry[0], entry[1].visible != "everyone" or entry[1].owner is not None),
            )
        for cap_bytes, model in self._largest_first:
            if model.visible_to(tenant):
                return cap_bytes
        return min(self._default_bytes, self._most_bytes)
