"""The library on the server: loaded where it is missing, and gone when its version is."""

import logging
from typing import Any

import pytest
import redis

from billing.cell.execute import forget_other_versions, load
from billing.cell.replies import Reserved, Settled
from billing.cell.scripts import library
from gateway.redis.pipe import RedisPipe
from tests.billing.cell.requests import CellRequest


def give(client: redis.Redis, name: str) -> None:
    client.function_load(f"#!lua name={name}\nredis.register_function('{name}_f', function() return 1 end)")


def libraries(client: redis.Redis) -> set[str]:
    untyped: Any = client
    found = untyped.function_list()
    return {each["library_name"] if isinstance(each, dict) else each[1] for each in found}


def test_libraries_of_other_versions_are_deleted_and_nobody_elses(valkey: redis.Redis) -> None:
    load(valkey)
    foreign = {"taas_theirs", "another"}
    for name in ("taas_0123456789abcdef", *foreign):
        give(valkey, name)
    forget_other_versions(valkey)
    assert libraries(valkey) == {library().name, *foreign}
    for name in foreign:
        valkey.function_delete(name)


async def test_a_version_whose_library_was_deleted_goes_on(valkey: redis.Redis, valkey_url: str) -> None:
    request = CellRequest(client=valkey, request_id="r")
    assert isinstance(request.reserve(), Reserved)
    valkey.function_delete(library().name)
    pipe = RedisPipe(valkey_url)
    assert (await pipe.execute(*request.settle_command()))[0] == b"settled"
    await pipe.close()
    valkey.function_delete(library().name)
    other = CellRequest(client=valkey, request_id="s")
    assert isinstance(other.reserve(), Reserved)
    assert isinstance(other.settle(), Settled)


def test_a_user_who_may_not_list_them_is_told_of(
    valkey: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.acl_setuser("few", enabled=True, nopass=True, categories=["+@all"], commands=["-function|list"])
    port = valkey.connection_pool.connection_kwargs["port"]
    caplog.set_level(logging.WARNING)
    with redis.Redis(port=port, username="few", password="") as client:
        forget_other_versions(client)
    valkey.acl_deluser("few")
    assert "FUNCTION LIST" in caplog.text
