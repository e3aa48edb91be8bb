"""What `taas-verify` says of a tenant's export, in this process."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Connection

from billing.catalogue.tenants import Tenant
from billing.ledger.chain import chain_waiting
from billing.ledger.usage_export import export_usage, span_of
from billing.schema.clock import database_now_ms
from billing.wire.evidence import make_key, public_pem, read_private_key
from deploy import taas_verify

# Which signs documents and checkpoints.
KEY = read_private_key(make_key())


def exported(connection: Connection, tenant: Tenant, from_ms: int = 0) -> list[bytes]:
    """The lines of an export of all since then."""
    while chain_waiting(connection, most=100):
        pass
    until_ms = max(from_ms, database_now_ms(connection) + 1)
    span = span_of(connection, tenant.tenant_id, from_ms, until_ms)
    return list(export_usage(connection, tenant, span, KEY))


def report_of(lines: Iterable[bytes]) -> taas_verify.Report:
    """Of an export with these lines."""
    with TemporaryDirectory() as folder:
        export, key = Path(folder, "export.ndjson"), Path(folder, "key.pub")
        export.write_bytes(b"".join(lines))
        key.write_text(public_pem(KEY))
        return taas_verify.verify(export, key).report


def assert_verified(connection: Connection, tenant: Tenant) -> None:
    """All of what is recorded of a tenant is found right, and nothing of it is left unchecked."""
    report = report_of(exported(connection, tenant))
    assert (report.differences, report.notes) == ([], [])
