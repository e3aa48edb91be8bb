"""Routes of models."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field, StrictStr
from sqlalchemy import Connection

from billing.api.answer import Listing
from billing.api.catalogue_answers import ModelAnswer
from billing.api.control import Control
from billing.api.fields import COUNT_MAX, Body, ModelPath, Name, Text, Tokens
from billing.api.paging import NameContains, PageQuery
from billing.api.query import KNOWN_QUERY
from billing.catalogue import models, tenants
from billing.catalogue.models import Model, ModelChange, ModelSpec, Status, Weights
from billing.catalogue.price_book import for_sale_from
from billing.contracts import store
from billing.contracts.lifecycle import OPERATOR
from billing.contracts.reweigh import change_model
from billing.wire.routes import OFFERED_ROUTES, TEXT_ROUTES

router = APIRouter(prefix="/admin/v1/models", tags=["models"], dependencies=[KNOWN_QUERY])

# A type checker cannot know the columns of a table.
if TYPE_CHECKING:
    RouteName = str
else:
    RouteName = Literal[OFFERED_ROUTES]
Routes = Annotated[tuple[RouteName, ...], Field(min_length=1, max_length=len(OFFERED_ROUTES), strict=False)]
KwargNames = Annotated[
    tuple[Annotated[StrictStr, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], ...],
    Field(max_length=32, strict=False),
]
Audience = Annotated[tuple[Name, ...], Field(min_length=1, max_length=1000, strict=False)]
Visible = Literal["everyone", "internal"] | Audience
BodyBytes = Annotated[int, Field(ge=1024, le=1024 * 1024 * 1024)]
Weight = Annotated[int, Field(ge=0, le=COUNT_MAX)]


class WeightsBody(Body):
    """Milliunits per token (1000 = one work unit a token). Versions are counted from 1, unless a version is
    given.
    """

    w_in_mu: Weight
    w_cached_mu: Weight
    w_out_mu: Weight
    version: Tokens | None = None

    def weights(self) -> Weights:
        """Without the version."""
        return Weights(self.w_in_mu, self.w_cached_mu, self.w_out_mu)


class NewModel(Body):
    """A name that callers may ask for. `visible` and `owner` name tenants by id or name; only its owner can
    see an owned model.
    """

    name: Name
    context_tokens: Tokens
    visible: Visible = "everyone"
    owner: Name | None = None
    routes: Routes = TEXT_ROUTES
    engine_model: Text | None = None
    vocabulary_tokens: Tokens | None = None
    default_max_tokens: Tokens | None = None
    weights: WeightsBody | None = None
    chat_template_kwargs: KwargNames = ()
    pool: Name | None = None
    max_body_bytes: BodyBytes | None = None


class ModelChangeBody(Body):
    """Fields that are not given stay. New weights become a new version; requests for a retired model get 404.
    `reweigh`: confirms that signed contracts may count in units that buy something else. `takes_batches`:
    whether a model with an owner takes batches, whose prompts are stored; its owner must have allowed it.
    """

    status: Status | None = None
    visible: Visible | None = None
    routes: Routes | None = None
    engine_model: Text | None = None
    context_tokens: Tokens | None = None
    vocabulary_tokens: Tokens | None = None
    default_max_tokens: Tokens | None = None
    weights: WeightsBody | None = None
    chat_template_kwargs: KwargNames | None = None
    max_body_bytes: BodyBytes | None = None
    takes_batches: bool | None = None
    reweigh: bool = False


@router.post("", status_code=201, response_model=ModelAnswer)
def create(body: NewModel, control: Control, response: Response) -> dict[str, Any]:
    """Add a model. Its instances come by `taas worker` or `taas instance add`."""
    spec = ModelSpec(
        name=body.name,
        context_tokens=body.context_tokens,
        visible=body.visible,
        owner=body.owner,
        routes=body.routes,
        engine_model=body.engine_model,
        vocabulary_tokens=body.vocabulary_tokens,
        default_max_tokens=body.default_max_tokens,
        weights=Weights() if body.weights is None else body.weights.weights(),
        weights_version=(body.weights and body.weights.version) or 1,
        chat_template_kwargs=body.chat_template_kwargs,
        pool=body.pool,
        max_body_bytes=body.max_body_bytes,
    )
    with control.changing(response) as connection:
        return _shown(connection, [models.create(connection, spec)])[0]


@router.get("", response_model=Listing[ModelAnswer])
def list_all(
    control: Control,
    asked: PageQuery,
    name: NameContains = None,
    status: Annotated[Status | None, Query()] = None,
    pool: Annotated[Name | None, Query(description="Of this pool only.")] = None,
) -> dict[str, Any]:
    """Models by name, including retired ones."""
    with control.reading() as connection:
        found = models.list_page(connection, asked, name=name, status=status, pool=pool)
        return {"data": _shown(connection, found.rows), "next": found.next}


@router.get("/{name:path}", response_model=ModelAnswer)
def show(name: ModelPath, control: Control) -> dict[str, Any]:
    """One model."""
    with control.reading() as connection:
        return _shown(connection, [models.find(connection, name)])[0]


@router.patch("/{name:path}", response_model=ModelAnswer)
def change(name: ModelPath, body: ModelChangeBody, control: Control, response: Response) -> dict[str, Any]:
    """Change a model. Running requests keep the weights with which they began."""
    wanted = ModelChange(
        status=body.status,
        visible=body.visible,
        routes=body.routes,
        engine_model=body.engine_model,
        context_tokens=body.context_tokens,
        vocabulary_tokens=body.vocabulary_tokens,
        default_max_tokens=body.default_max_tokens,
        weights=None if body.weights is None else body.weights.weights(),
        weights_version=None if body.weights is None else body.weights.version,
        chat_template_kwargs=body.chat_template_kwargs,
        max_body_bytes=body.max_body_bytes,
        takes_batches=body.takes_batches,
    )
    with control.changing(response) as connection:
        now_ms = store.now_ms(connection)
        changed = change_model(connection, name, wanted, reweigh=body.reweigh, by=OPERATOR, now_ms=now_ms)
        return _shown(connection, [changed])[0]


def _shown(connection: Connection, found: Iterable[Model]) -> list[dict[str, Any]]:
    """As JSON, with the names of the tenants that the entries name by id."""
    shown = list(found)
    ids = {tenant for model in shown for tenant in _tenants_of(model)}
    names = tenants.names(connection, ids)
    for_sale = for_sale_from(connection)
    return [_one(model, names, for_sale.get(model.name)) for model in shown]


def _tenants_of(model: Model) -> tuple[str, ...]:
    visible = () if isinstance(model.visible, str) else model.visible
    return visible if model.owner is None else (*visible, model.owner)


def _one(model: Model, names: dict[str, str], for_sale_from_ms: int | None) -> dict[str, Any]:
    """`for_sale_from_ms`: when it has a price from; null: it has none, and external tenants cannot see it."""
    return {
        "name": model.name,
        "status": model.status,
        "pool": model.pool,
        "cell": model.cell,
        "visible": model.visible,
        "owner": model.owner,
        "tenant_names": {tenant: names[tenant] for tenant in _tenants_of(model)},
        "routes": model.routes,
        "engine_model": model.engine_model,
        "context_tokens": model.context_tokens,
        "vocabulary_tokens": model.vocabulary_tokens,
        "default_max_tokens": model.default_max_tokens,
        "weights": model.versioned_weights(),
        "chat_template_kwargs": model.chat_template_kwargs,
        "max_body_bytes": model.max_body_bytes,
        "takes_batches": model.owner is None or model.takes_batches,
        "for_sale_from_ms": for_sale_from_ms,
        "created_ms": model.created_ms,
        "updated_ms": model.updated_ms,
    }
