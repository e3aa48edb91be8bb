"""Who may import whom, and that importing does nothing but define."""

import ast
import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.source_tree import PACKAGES, ROOT, Source, sources, tell

pytestmark = pytest.mark.sources

# What each package may import of the others. A package's own modules are always its own business.
ALLOWED: dict[str, tuple[str, ...]] = {
    "gateway": ("billing",),
    "serving": ("billing.wire",),
    "billing": (),
    "loadtest": (),
    "deploy": PACKAGES,
}
# What gateway may use of the control plane: the words both sides speak. The rest is billing's inside.
PUBLIC_FOR_GATEWAY = ("billing.wire", "billing.cell")
# What each room may import of the others in its package. A room never imports a stage of the request's way,
# nor what puts all together.
VALUES = {
    "gateway": ("errors", "error_form", "request", "clock", "settings", "lifecycle"),
    "billing": ("wire", "schema", "refusals", "findings", "page", "leadership", "settings", "moments"),
}
ROOMS: dict[str, dict[str, tuple[str, ...]]] = {
    "gateway": {
        "redis": (),
        "protocol": (),
        "edge": (),
        "catalogue": ("redis",),
        "stream": ("protocol",),
        "translate": ("protocol", "stream"),
        "upstream": ("stream", "translate"),
        "routing": ("catalogue", "redis", "metrics"),
        "waiting": ("catalogue", "redis", "metrics", "exchange"),
        "process": ("edge", "metrics"),
    },
    "billing": {
        "wire": (),
        "schema": (),
        "migrations": (),
        "cell": (),
        "catalogue": ("cell",),
        "accounts": ("catalogue",),
        "ledger": ("catalogue",),
        "fleet": ("catalogue",),
        "usage": ("catalogue", "cell", "ledger", "metrics", "outgoing"),
        "audit": ("invoices", "accounts", "catalogue", "ledger", "fleet", "usage"),
        "contracts": ("catalogue", "cell", "ledger"),
        "reclaims": ("catalogue", "contracts", "fleet", "ledger"),
        "economics": ("catalogue", "contracts", "invoices", "ledger", "reclaims"),
        "allocator": ("catalogue", "cell", "contracts", "fleet", "usage", "metrics"),
        "batch": ("ledger", "batches", "database", "idempotency"),
        "invoices": ("catalogue", "contracts", "ledger"),
        "exports": ("catalogue", "contracts", "invoices", "ledger", "usage", "metrics", "outgoing"),
        "autoscaling": ("catalogue", "contracts", "allocator", "fleet"),
        "api": (
            "accounts",
            "autoscaling",
            "catalogue",
            "contracts",
            "invoices",
            "reclaims",
            "economics",
            "exports",
            "allocator",
            "ledger",
            "fleet",
            "usage",
            "audit",
            "idempotency",
            "batches",
        ),
    },
}
# Decisions and arithmetic. They are tested without a server, and stay so.
PURE = (
    "gateway.route", "gateway.routes", "gateway.routing.rank", "gateway.routing.prompt_hashes",
    "gateway.routing.prefix_index", "gateway.routing.loads", "gateway.routing.news",
    "gateway.upstream.adapters", "gateway.stream.meter",
    "gateway.stream.meter_plain", "gateway.stream.meter_typed", "gateway.stream.meter_choices",
    "gateway.protocol", "gateway.translate",
    "billing.accounts.roles",
    "billing.catalogue.money", "billing.catalogue.budget_periods", "billing.wire.tokens",
    "billing.wire.usage_event",
    "billing.wire.attribution", "billing.wire.redis_keys", "serving.vllm_command", "serving.backoff",
    "serving.served_model", "serving.launching.launcher", "serving.calibration.fit",
    "serving.calibration.mixes",
    "billing.allocator.shares", "billing.allocator.minutes", "gateway.stream.continuation",
    "billing.contracts.terms", "billing.contracts.timeline", "billing.contracts.position",
    "billing.contracts.quote", "billing.autoscaling.decide", "billing.economics.months",
    "billing.economics.shown", "billing.exports.recorded", "billing.exports.shapes",
    "billing.exports.focus_columns",
)  # fmt: skip
DOES_IO = {
    "redis", "hiredis", "httpx", "httptools", "sqlalchemy", "psycopg", "alembic", "socket", "asyncio",
    "subprocess", "uvicorn", "uvloop", "fastapi", "starlette", "prometheus_client", "aiohttp", "threading",
    "ssl",
}  # fmt: skip
SQL = ("sqlalchemy", "alembic", "psycopg")


def imports_of(source: Source) -> list[tuple[str, int]]:
    """Every module that a file imports, wherever in it, and the line. `from a import b` counts as a.b where
    that is a module; what only a type checker sees does not count.
    """
    known = {other.module for other in sources()}
    found = []
    for_types = {
        id(node)
        for block in source.walk(ast.If)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in source.walk((ast.Import, ast.ImportFrom)):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source.path}:{node.lineno}: imports are absolute"
            whole = node.module or ""
            found += [
                (f"{whole}.{alias.name}" if f"{whole}.{alias.name}" in known else whole, node.lineno)
                for alias in node.names
            ]
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_packages_import_only_what_they_may() -> None:
    wrong = []
    for source in sources():
        if source.package not in PACKAGES:
            continue
        for module, line in imports_of(source):
            package = module.partition(".")[0]
            if package == "tests":
                wrong.append(f"{source.path}:{line} imports {module}")
            if package not in PACKAGES or package == source.package:
                continue
            if not any(inside(module, allowed) for allowed in ALLOWED[source.package]):
                wrong.append(f"{source.path}:{line} imports {module}")
    rule = "gateway → billing; serving → billing.wire; billing and loadtest → nobody; deploy → all."
    assert not wrong, tell(wrong, rule)


def test_gateway_uses_only_the_public_names_of_billing_and_serving() -> None:
    wrong = [
        f"{source.path}:{line} imports {module}"
        for source in sources()
        if source.package == "gateway"
        for module, line in imports_of(source)
        if module.partition(".")[0] in {"billing", "serving"} and not any(inside(module,
        public) for public in PUBLIC_FOR_GATEWAY)
    ]  # fmt: skip
    assert not wrong, tell(
        wrong, f"gateway may use {', '.join(PUBLIC_FOR_GATEWAY)}; the rest is the inside of another part."
    )


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_what_they_may(package: str) -> None:
    rooms, wrong, found = ROOMS[package], [], set()
    for source in sources():
        _, *path = source.module.split(".")
        if (
            source.package != package
            or not path
            or not (len(path) > 1 or source.path.endswith("__init__.py"))
        ):
            continue
        found.add(path[0])
        allowed = (path[0], *VALUES[package], *rooms[path[0]])
        wrong += [
            f"{source.path}:{line} imports {module}"
            for module, line in imports_of(source)
            if inside(module, package) and not any(inside(module, f"{package}.{name}") for name in allowed)
        ]
    assert found == set(rooms), "each room has its line in the table"
    assert not wrong, tell(wrong, "Rooms import downwards only, and no stage: see ROOMS.")


@cache
def probe(package: str) -> dict[str, Any]:
    """What importing every module of a package does, in a process of its own."""
    modules = [source.module for source in sources() if source.package == package and _is_importable(source)]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.import_probe", *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"importing {package} fails:\n{run.stderr[-2000:]}"
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


def _is_importable(source: Source) -> bool:
    """Scripts of alembic run only inside it; a converter runs in vLLM's environment."""
    return not source.path.startswith("billing/migrations/") and "-" not in source.path


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_does_nothing(package: str) -> None:
    deeds = probe(package)["deeds"]
    assert not deeds, tell(
        deeds, f"Importing {package} reads no environment, opens no socket, starts no thread or process."
    )


@pytest.mark.parametrize("package", ["gateway", "serving", "loadtest"])
def test_importing_loads_no_sql(package: str) -> None:
    loaded = [name for name in probe(package)["loaded"] if name in SQL]
    assert not loaded, (
        f"importing {package} loads {loaded}: SQL belongs to the control plane, and costs every process "
        "memory and start-up"
    )


def test_nothing_of_the_product_loads_the_engine() -> None:
    for package in PACKAGES:
        heavy = {"vllm", "torch", "transformers"} & set(probe(package)["loaded"])
        assert not heavy, f"importing {package} loads {heavy}, which live in an environment of their own"


def test_ray_is_loaded_by_nobody_until_a_launcher_asks_for_it() -> None:
    """It is an extra, which gateways and billing do not have."""
    for package in PACKAGES:
        assert "ray" not in probe(package)["loaded"], f"importing {package} loads Ray"
    named = {
        source.path
        for source in sources()
        if source.package in PACKAGES
        for module, _ in imports_of(source)
        if inside(module, "ray")
    }
    assert named == {"serving/launching/ray_cluster.py", "serving/launching/ray_actor.py"}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_reach_no_io(module: str) -> None:
    by_name = {source.module: source for source in sources()}
    members = [name for name in by_name if inside(name, module)]
    assert members, f"there is no module {module}: take it off the list, or give it its name back"
    seen: dict[str, str] = {}
    todo = [(name, name) for name in members]
    while todo:
        name, way = todo.pop()
        if name in seen or name not in by_name:
            continue
        seen[name] = way
        for imported, _ in imports_of(by_name[name]):
            assert imported.partition(".")[0] not in DOES_IO, (
                f"{way} imports {imported}, which does I/O; {module} is pure"
            )
            todo.append((imported, f"{way} → {imported}"))
