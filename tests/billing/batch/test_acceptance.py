"""Which models a batch may name: those that a gateway would serve its caller, and by the same statements for
a model that does not exist and one that is not the caller's.
"""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine, event

from billing.batch.acceptance import _model
from billing.catalogue import api_keys, models, tenants
from billing.catalogue.models import ModelSpec

NAMES = ("open", "inside", "listed", "theirs", "retired", "unknown")


@pytest.fixture
def connection(migrated_database_url: str) -> Iterator[Connection]:
    """With a model of each sort; `theirs` is the private model of acme."""
    engine = create_engine(migrated_database_url)
    with engine.connect() as opened:
        for name, kind in (("acme", "external"), ("bolt", "external"), ("own", "internal")):
            tenants.create(opened, name, "internal" if kind == "internal" else "external")
        for spec in (
            ModelSpec(name="open", context_tokens=9),
            ModelSpec(name="inside", context_tokens=9, visible="internal"),
            ModelSpec(name="listed", context_tokens=9, visible=("bolt",)),
            ModelSpec(name="theirs", context_tokens=9, owner="acme"),
            ModelSpec(name="retired", context_tokens=9),
        ):
            models.create(opened, spec)
        models.change(opened, "retired", models.ModelChange(status="retired"))
        yield opened
    engine.dispose()


def seen(connection: Connection, tenant: str, allowed: list[str] | None = None) -> list[str]:
    tenant_id = tenants.find(connection, tenant).tenant_id
    key_id = api_keys.create(connection, tenant_id, allowed_models=allowed).key.key_id
    return [name for name in NAMES if _model(connection, name, tenant_id, key_id) is not None]


def test_each_tenant_sees_what_is_its_own_or_for_all(connection: Connection) -> None:
    assert seen(connection, "acme") == ["open", "theirs"]
    assert seen(connection, "bolt") == ["open", "listed"]
    assert seen(connection, "own") == ["open", "inside"]
    assert seen(connection, "acme", ["theirs"]) == ["theirs"]
    assert seen(connection, "bolt", ["theirs", "open"]) == ["open"]


def test_the_statements_are_the_same_whether_it_exists(connection: Connection) -> None:
    tenant_id = tenants.find(connection, "bolt").tenant_id
    key_id = api_keys.create(connection, tenant_id).key.key_id
    run: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        run.append(statement)

    event.listen(connection, "before_cursor_execute", note)
    statements = {}
    for name in ("theirs", "unknown", "inside", "retired"):
        run.clear()
        assert _model(connection, name, tenant_id, key_id) is None
        statements[name] = [*run]
    assert len(run) == 2
    assert all(each == statements["unknown"] for each in statements.values())
