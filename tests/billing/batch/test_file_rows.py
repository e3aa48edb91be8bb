"""Rows of files."""

from sqlalchemy import Engine

from billing.batch import file_rows
from billing.batch.file_rows import NewFile
from billing.catalogue import tenants
from billing.wire.batch_caller import BatchCaller


def test_a_file_that_is_complete_stays_whatever_became_of_its_caller(database: Engine) -> None:
    new = NewFile("batch", "input.jsonl", 3600)
    with database.begin() as connection:
        tenant = tenants.create(connection, "files-of-one", "external").tenant_id
        caller = BatchCaller(tenant=tenant, project="p", key_id="k", restricted=False)
        file_id = file_rows.begin_upload(connection, caller, new, tenant_bytes_max=10**9)
        file_rows.finish_upload(connection, file_id, 5, new)
        file_rows.give_up_upload(connection, file_id)
        assert file_rows.find(connection, caller, file_id).bytes == 5
