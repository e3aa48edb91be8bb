"""Keys: the cell's share one hash tag that no name from outside can break."""

import pytest

from billing.wire import redis_keys

CELL_KEYS = [
    redis_keys.tenant_bucket("pool-1", "t", "m}{x"),
    redis_keys.key_bucket("pool-1", "k", "org/m:1"),
    redis_keys.reservation("pool-1", "r"),
    redis_keys.open_requests("pool-1"),
    redis_keys.usage_stream("pool-1"),
    redis_keys.contract_bucket("pool-1", "t"),
    redis_keys.room("pool-1"),
    redis_keys.flight("pool-1"),
    redis_keys.waiting_tenants("pool-1", "o"),
    redis_keys.waiting_requests("pool-1", "f", "t"),
]


@pytest.mark.parametrize("key", CELL_KEYS)
def test_every_key_of_a_cell_shares_its_hash_tag(key: str) -> None:
    assert key[key.index("{") + 1 : key.index("}")] == "c:pool-1"


@pytest.mark.parametrize("cell", ["", "a}", "{a", "a}{b"])
def test_a_cells_name_cannot_break_out_of_its_hash_tag(cell: str) -> None:
    with pytest.raises(ValueError, match="hash tag"):
        redis_keys.open_requests(cell)


def test_keys_are_those_of_the_contract() -> None:
    assert redis_keys.key_of_api_key("ab") == "taas:key:ab"
    assert redis_keys.tenant("t1") == "taas:tenant:t1"
    assert CELL_KEYS == [
        "{c:pool-1}:b:t:m}{x",
        "{c:pool-1}:k:k:org/m:1",
        "{c:pool-1}:r:r",
        "{c:pool-1}:open",
        "{c:pool-1}:usage",
        "{c:pool-1}:q:t",
        "{c:pool-1}:room",
        "{c:pool-1}:flight",
        "{c:pool-1}:w:o",
        "{c:pool-1}:wl:f:t",
    ]
