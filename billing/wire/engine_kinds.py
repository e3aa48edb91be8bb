"""The kinds of engines: what every process knows of each. Pure; it knows no adapter.

A kind decides how requests are sent (`gateway/upstream/`), how counters are read, and which headers carry the
key. A *provider* is somebody else's API: we neither start nor count it, it bills us, and it knows nothing of
our tenants.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from billing.wire.routes import OFFERED_ROUTES, Route

# The default for entries that name no kind.
VLLM: Final = "vllm"
OPENAI: Final = "openai"
ANTHROPIC: Final = "anthropic"
# The requests that a provider's instance may have at once, unless its operator says otherwise.
PROVIDER_CONCURRENCY: Final = 64

UsageExport = Literal["openai", "anthropic"]


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _x_api_key(key: str) -> dict[str, str]:
    return {"x-api-key": key, "anthropic-version": "2023-06-01"}


@dataclass(frozen=True, slots=True)
class EngineKind:
    """`routes`: those that it serves, by the name under which a model offers them; a request on another route
    finds no such instance. `key_headers`: the headers that carry a key, by lower-case name. `usage_export`:
    the form in which it tells what an account has used; None: it does not.
    """

    name: str
    routes: frozenset[str]
    key_headers: Callable[[str], dict[str, str]]
    is_provider: bool
    usage_export: UsageExport | None


_ROWS: Final = (
    EngineKind(VLLM, frozenset(OFFERED_ROUTES), _bearer, is_provider=False, usage_export=None),
    EngineKind(
        OPENAI,
        frozenset({Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.EMBEDDINGS, Route.MESSAGES}),
        _bearer,
        is_provider=True,
        usage_export="openai",
    ),
    EngineKind(
        ANTHROPIC,
        frozenset({Route.MESSAGES, Route.CHAT}),
        _x_api_key,
        is_provider=True,
        usage_export="anthropic",
    ),
)
# The only list of kinds; `gateway/upstream/adapters.py` has an adapter for each.
KINDS: Final[Mapping[str, EngineKind]] = MappingProxyType({row.name: row for row in _ROWS})
PROVIDERS: Final = tuple(row.name for row in _ROWS if row.is_provider)
# Those that tell what an account has used.
EXPORTING: Final = tuple(row.name for row in _ROWS if row.usage_export)


_SNAPSHOT: Final = re.compile(r"(?:-\d{4}-\d{2}-\d{2}|-\d{8}|@\d{8}|-latest)$")


def without_snapshot(model: str) -> str:
    """A provider's name of a model without that of its snapshot, as accounts are charged under either."""
    return _SNAPSHOT.sub("", model)


def is_provider(kind: str) -> bool:
    """Whether an engine of this kind is somebody else's API. A kind that is not known here is none."""
    return kind in PROVIDERS


def key_headers(kind: str, key: str | None) -> dict[str, str]:
    """The headers with which an engine of this kind is shown the key; none without a key."""
    return KINDS[kind].key_headers(key) if key else {}
