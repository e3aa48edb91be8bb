"""Tenants, keys and models as the gateway sees them: read from the JSON that billing projects into Redis
(docs/interfaces.md §3).

Frozen values, checked once when they are read; an entry that cannot be read raises ValueError and its request
is refused.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from billing.wire.limits import FIELDS, LimitEntry, Limits
from billing.wire.tokens import Tokens, Weights

MILLIUNITS = 1000
NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class LimitTable:
    """Limits by model. The model's own entry wins over `*`, field by field. The limits of a model are merged
    once.
    """

    by_model: dict[str, LimitEntry]
    _made: dict[str, Limits] = field(default_factory=dict, repr=False, compare=False)

    def for_model(self, model: str) -> Limits:
        """The limits that hold for one model."""
        if not self.by_model:
            return NO_LIMITS
        made = self._made.get(model)
        if made is None:
            made = self._made[model] = Limits.of_entries(self.by_model.get(model), self.by_model.get("*"))
        return made

    @classmethod
    def read(cls, entries: list[dict[str, Any]]) -> "LimitTable":
        """From a list of LIMIT objects."""
        return cls(
            {
                entry["model"]: {each.name: _limit(entry.get(each.name)) for each in FIELDS}
                for entry in entries
            }
        )


def _limit(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise ValueError("limit")
    return value


@dataclass(frozen=True, slots=True)
class OutagePolicy:
    """What a tenant may do while Redis is away: nothing (`requests` 0), or a bounded local lease over all
    gateways together.
    """

    requests: int = 0
    milliunits: int = 0


@dataclass(frozen=True, slots=True)
class BudgetOf:
    """A budget of a tenant (`project` and `key_id` None), of one of its projects, or of one of its keys.
    `per`: None in entries of the last version.
    """

    budget: str
    project: str | None
    key_id: str | None
    per: str | None


@dataclass(frozen=True, slots=True)
class Price:
    """What a token costs from this moment on, in pico-dollars."""

    valid_from_ms: int
    input: int
    cached_input: int
    output: int
    cache_write: int

    def most(self, prompt_tokens: int, output_tokens: int) -> int:
        """The most that so many tokens can cost, however much of the prompt a cache has or gets."""
        return (
            max(self.input, self.cached_input, self.cache_write) * prompt_tokens + self.output * output_tokens
        )

    def amount(self, tokens: Tokens) -> int:
        """What these tokens cost, in pico-dollars."""
        return tokens.amount(
            input=self.input,
            cached_input=self.cached_input,
            cache_write=self.cache_write,
            output=self.output,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who is billed. `budgets`: its own, and those of its projects and keys. `retain_answers_s`: how long the
    answers to its requests with an Idempotency-Key are stored; 0: they are not.
    """

    tenant: str
    kind: str
    active: bool
    on_demand: bool
    outage: OutagePolicy
    weight: int
    limits: LimitTable
    budgets: tuple[BudgetOf, ...] = ()
    retain_answers_s: int = 0

    @classmethod
    def read(cls, raw: bytes) -> "Tenant":
        """From `taas:tenant:<id>`. Raises ValueError."""
        entry = _object(raw)
        try:
            policy = entry.get("redis_down") or {}
            lease = policy.get("policy") == "local_lease"
            return cls(
                tenant=entry["tenant"],
                kind=entry["kind"],
                active=entry["status"] == "active",
                on_demand=bool(entry.get("on_demand", True)),
                outage=OutagePolicy(int(policy["requests"]), int(policy["units"]) * MILLIUNITS)
                if lease
                else OutagePolicy(),
                weight=max(1, int(entry.get("weight", 1))),
                limits=LimitTable.read(entry.get("limits") or []),
                budgets=tuple(
                    BudgetOf(each["budget"], each["project"], each["key_id"], each.get("per"))
                    for each in entry.get("budgets") or ()
                ),
                retain_answers_s=int(entry.get("retain_answers_s") or 0),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError("tenant entry") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that exists and is not revoked; its expiry is checked at use. `models`: the models that it may
    ask for, None for all of its tenant's. `archived`: its project is archived, so the key is refused.
    """

    key_id: str
    key_hash: str
    tenant: str
    project: str
    expires_at_ms: int | None
    limits: LimitTable
    models: frozenset[str] | None = None
    archived: bool = False

    @classmethod
    def read(cls, raw: bytes) -> "ApiKey":
        """From `taas:key:<hash>`. Raises ValueError."""
        entry = _object(raw)
        try:
            return cls(
                key_id=entry["key_id"],
                key_hash=entry["hash"],
                tenant=entry["tenant"],
                project=entry["project"],
                expires_at_ms=entry.get("expires_at_ms"),
                limits=LimitTable.read(entry.get("limits") or []),
                models=None if entry.get("models") is None else frozenset(entry["models"]),
                archived=bool(entry.get("archived", False)),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError("key entry") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A name that callers ask for. `for_sale_from_ms`: when it has a price from, None for never. An entry
    without this field is for sale. `capacity_mu_s`: what an instance can do, None if it is not calibrated.
    `wakes`: while it has no instance, its requests may wait for one to be started. `prices`: those that hold
    now and later, the last one first.
    """

    name: str
    pool: str
    cell: str
    visible: str | frozenset[str]
    owner: str | None
    routes: frozenset[str]
    engine_model: str
    context_tokens: int
    vocabulary_tokens: int | None
    default_max_tokens: int
    weights: Weights
    chat_template_kwargs: frozenset[str]
    created: int
    active: bool
    max_body_bytes: int | None = None
    for_sale_from_ms: int | None = 0
    capacity_mu_s: int | None = None
    wakes: bool = False
    prices: tuple[Price, ...] = ()

    def price_at(self, moment_ms: int) -> Price | None:
        """What a request that starts then pays; None if there is no price."""
        return next((each for each in self.prices if each.valid_from_ms <= moment_ms), None)

    def for_sale_to(self, tenant: Tenant, now_ms: int) -> bool:
        """Whether it has a price now, or the tenant needs none: internal tenants may use models that are not
        for sale.
        """
        return tenant.kind == "internal" or (
            self.for_sale_from_ms is not None and self.for_sale_from_ms <= now_ms
        )

    @property
    def audience(self) -> str | frozenset[str]:
        """Who may see the model, once it is for sale: `everyone`, `internal`, or these tenants. Whatever else
        its entry says, an owned model is its owner's alone.
        """
        return self.visible if self.owner is None else frozenset({self.owner})

    @classmethod
    def read(cls, raw: bytes) -> "Model":
        """From a field of `taas:models`. Raises ValueError."""
        entry = _object(raw)
        try:
            visible, weights = entry["visible"], entry["weights"]
            return cls(
                name=entry["name"],
                pool=entry["pool"],
                cell=entry["cell"],
                visible=frozenset(visible) if isinstance(visible, list) else str(visible),
                owner=entry.get("owner"),
                routes=frozenset(entry["routes"]),
                engine_model=entry["engine_model"],
                context_tokens=int(entry["context_tokens"]),
                vocabulary_tokens=entry.get("vocabulary_tokens"),
                default_max_tokens=int(entry["default_max_tokens"]),
                weights=Weights(
                    int(weights["version"]),
                    int(weights["w_in_mu"]),
                    int(weights["w_cached_mu"]),
                    int(weights["w_out_mu"]),
                ),
                chat_template_kwargs=frozenset(entry.get("chat_template_kwargs") or ()),
                created=int(entry.get("created", 0)),
                active=entry.get("status", "active") == "active",
                max_body_bytes=_limit(entry.get("max_body_bytes")),
                for_sale_from_ms=entry.get("for_sale_from_ms", 0),
                capacity_mu_s=_limit(entry.get("capacity_mu_s")),
                wakes=entry.get("wakes") is True,
                prices=tuple(Price(*map(int, each)) for each in entry.get("prices") or ()),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError("model entry") from exc


def _object(raw: bytes) -> dict[str, Any]:
    entry = orjson.loads(raw)
    if not isinstance(entry, dict):
        raise ValueError("entry is not an object")
    return entry
