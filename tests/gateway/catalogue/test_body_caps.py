"""Which cap holds for a body: the model's, and before that is known the largest that the caller could
mean.
"""

from types import SimpleNamespace
from typing import Any, cast

import orjson

from gateway.catalogue.body_caps import BodyCaps
from gateway.catalogue.entries import Model, Tenant
from gateway.catalogue.feed import Catalogue
from gateway.catalogue.visible_models import VisibleModels

DEFAULT, MOST = 4_000, 50_000


def model(name: str, **fields: Any) -> Model:
    entry = {
        "name": name, "pool": name, "cell": name, "visible": "everyone", "owner": None, "routes": ["chat"],
        "engine_model": name,
        "context_tokens": 4096, "default_max_tokens": 256, "weights": {"version": 1, "w_in_mu": 1,
        "w_cached_mu": 1, "w_out_mu": 1},
    } | fields  # fmt: skip
    return Model.read(orjson.dumps(entry))


def tenant(name: str) -> Tenant:
    return Tenant.read(orjson.dumps({"tenant": name, "kind": "external", "status": "active"}))


def caps_of(*models: Model) -> tuple[BodyCaps, SimpleNamespace]:
    catalogue = SimpleNamespace(visible=VisibleModels({each.name: each for each in models}))
    return BodyCaps(cast("Catalogue", catalogue), DEFAULT, MOST), catalogue


def test_the_largest_that_the_tenant_sees_holds_until_the_model_is_known() -> None:
    plain, eyes = model("plain"), model("eyes", max_body_bytes=9_000)
    private = model("private", max_body_bytes=20_000, owner="ten_b", visible=["ten_b"])
    retired = model("retired", max_body_bytes=30_000, status="retired")
    caps, _ = caps_of(plain, eyes, private, retired)
    assert (caps.of_tenant(tenant("ten_a")), caps.of_tenant(tenant("ten_b"))) == (9_000, 20_000)
    assert (caps.of_model(plain), caps.of_model(eyes)) == (DEFAULT, 9_000)


def test_a_model_may_take_less_than_the_default() -> None:
    caps, _ = caps_of(model("small", max_body_bytes=2_000))
    assert caps.of_tenant(tenant("ten_a")) == 2_000


def test_nothing_is_larger_than_what_can_be_received() -> None:
    huge = model("huge", max_body_bytes=1_000_000)
    caps, _ = caps_of(huge)
    assert caps.of_tenant(tenant("ten_a")) == caps.of_model(huge) == MOST


def test_a_change_of_the_catalogue_is_seen() -> None:
    caps, catalogue = caps_of()
    assert caps.of_tenant(tenant("ten_a")) == DEFAULT
    catalogue.visible = VisibleModels({"eyes": model("eyes", max_body_bytes=9_000)})
    assert caps.of_tenant(tenant("ten_a")) == 9_000
