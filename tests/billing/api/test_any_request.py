"""Fault 16 for the routes of capacity: whatever is sent, the answer is one of ours, soon, and what is refused
has changed nothing.

Requests are made from the API's own document: right ones, and from these what is wrong in one place or in
several.
"""

import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import redis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from billing.wire import redis_keys
from tests.billing.api.conftest import ADMIN_KEY
from tests.examples import examples

ROUTES = (
    "/pools", "/calibrations", "/contracts", "/reclaims", "/plan", "/capacity", "/machines", "/economics",
)  # fmt: skip
POOL = "org/llama"
# Sent as they are, where JSON of Python's has no word for them.
RAW = {f"raw-{number}": raw for number, raw in enumerate(
    ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 401, "-" + "9" * 401, "9" * 5000, "1e-400",
    "0.0000000001", "-0", "-0.0",
     '"\\ud800"', "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "01", "tru"]
)}  # fmt: skip
ODD_TEXTS = (
    "", " ", "\x00", "a\x00b", "a" * 129, "a" * 5_000, "ten_0", "{c:x}", "../x", "a//b", "%00", "\ud800", "é",
    "٣", "1_0", " 1", "1e400", "-1e400", "1E+20", "NaN", "Infinity", "-1", "0.0001", "9" * 25, "0x10",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999-23:59",
    "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "2026-13-01", "1969-12-31T23:59:59Z", "24:00",
    "2200-01-01T00:00:60Z", "2200-W01-1", "true", "null", "'; drop table contract; --",
)  # fmt: skip
ODD_NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**15, 10**18,
253_402_300_799_999, 253_402_300_800_000,
               0.5, -0.001, 1e-320, 1.7e308, 1e15)  # fmt: skip
STARTS = (None, 4_102_444_800_000, "2100-01-01T00:00:00Z", "2100-06-01T00:00:00+02:00")
ENDS = (4_133_980_800_000, "2101-01-01", "2110-01-01T00:00:00+05:30")
TENANTS = ("acme", "bolt", "core", "dune", "echo", "fern", "gate", "hill")
# What the rules of a noun ask for beyond its schema.
NEEDED = {"units", "notice_days"}
# Right values by the name of the field, where its type alone says too little.
RIGHT: dict[str, tuple[Any, ...]] = {
    "tenant": TENANTS, "pool": (POOL, POOL, "empty"), "model": (POOL,), "contract": ("con_0",),
    "run": ("0123456789ab",), "instance": ("i-1", "i-2", "i-9"), "epoch": ("e",), "hardware": ("cpu",),
    "engine_version": ("0.32",), "mix": ("chat",), "units": ("10", 1, 0.5, 50, "1999.999"),
    "capacity_units_per_second": ("1000", 1500), "spill_units": (None, None, None, "5"),
    "set_aside": (None, 0, "10"), "headroom": (0, "0.1", 0.999), "error": (0, "0.03"), "notice_days": (0, 90),
    "minimum_until": (None,), "tenant_notice_days": (None, 30), "operator_notice_days": (None, 3_660),
    "by": STARTS, "overflow": ("spill", "reject", "queue"), "instances": (1, 2, 50), "quarters": (1, 4, 40),
    "price_reference": (None, "p-1"), "from": STARTS, "until": ENDS,
    "started_ms": (0, 1_800_000_000_000), "seconds": (0.5, 30), "tpot_ms": (None, 12.5), "ttft_ms": (None,
    100), "w_in_mu": (1000,),
    "w_cached_mu": (100,), "w_out_mu": (4000,), "prompt": (0, 5), "cached": (0,), "output": (0, 7),
    "sequences": (1, 16),
}  # fmt: skip

# What was written and what is being written: the numbers of transactions.
_WRITING = text("select pg_current_snapshot()::text")

ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, *ODD_NUMBERS, *ODD_TEXTS, *RAW]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "units", "",
    "a\x00"]), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


class Api:
    """The app as it stands, and what it says of itself."""

    def __init__(self, client: TestClient, connection: Connection) -> None:
        self.client = client
        self._connection = connection
        document = client.get("/openapi.json").json()
        self._schemas = document["components"]["schemas"]
        self.operations = [
            (method.upper(), path, operation)
            for path, operations in document["paths"].items()
            if path.removeprefix("/admin/v1").startswith(ROUTES)
            for method, operation in operations.items()
        ]
        names = connection.execute(
            text("select tablename from pg_tables where schemaname = 'public' order by 1")
        ).scalars()
        parts = [
            f"select '{name}', count(*), sum(hashtextextended(t::text, 0)) from {name} t"  # noqa: S608
            for name in names
        ]
        self._every_row = text(" union all ".join(parts))
        self._rows: dict[str, Any] = {}
        self._written: str | None = None
        self.ids = {"contract_id": ["con_0"], "reclaim_id": ["rec_0"]}
        for contract in client.get("/admin/v1/contracts").json()["data"]:
            self.learn(contract)

    def rows(self) -> dict[str, Any]:
        """Every row of every table, told by its hash. They are read again only if PostgreSQL has numbered a
        transaction since, which it does for each that writes.
        """
        written = self._connection.execute(_WRITING).scalar_one()
        if written != self._written:
            # Their order is PostgreSQL's, which may read several tables at once.
            self._rows = {name: told for name, *told in self._connection.execute(self._every_row)}
            self._written = written
        return self._rows

    def learn(self, answer: Any) -> None:
        """Ids of what was made, for the paths of later requests."""
        if isinstance(answer, dict):
            for noun in ("contract", "reclaim"):
                known = self.ids[f"{noun}_id"]
                if isinstance(answer.get(noun), str) and answer[noun] not in known:
                    known.append(answer[noun])

    def values(self, schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Any]:
        """What is right by the document, for the most part."""
        if "$ref" in schema:
            return self.objects(self._schemas[schema["$ref"].rsplit("/", 1)[1]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if name in RIGHT:
            return st.sampled_from(RIGHT[name])
        if "anyOf" in schema:
            return st.one_of(*(self.values(each, name) for each in schema["anyOf"]))
        match schema.get("type"):
            case "array":
                return st.lists(self.values(schema["items"]), max_size=3)
            case "boolean":
                return st.booleans()
            case "integer" | "number":
                return st.sampled_from([0, 1, 7, 90, 1_000])
            case "null":
                return st.none()
            case _:
                return st.sampled_from(["acme", "x", "chat"])

    def right(self, schema: dict[str, Any], name: str = "") -> Any:
        """One right value, with every field that there is."""
        if "$ref" in schema:
            named = self._schemas[schema["$ref"].rsplit("/", 1)[1]]
            return {field: self.right(each, field) for field, each in named["properties"].items()}
        if "enum" in schema:
            return schema["enum"][0]
        if name in RIGHT:
            return RIGHT[name][0]
        match schema.get("type"):
            case "array":
                return [] if name == "ramp" else [self.right(schema["items"])]
            case "boolean":
                return False
            case _:
                return "x" if schema.get("type") == "string" else None

    def objects(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """With all that must be there, and some of what may be."""
        fields = {name: self.values(each, name) for name, each in schema["properties"].items()}
        needed = {
            name: field for name, field in fields.items() if name in {*schema.get("required", []), *NEEDED}
        }
        return st.fixed_dictionaries(
            needed, optional={name: each for name, each in fields.items() if name not in needed}
        )


@pytest.fixture
def api(admin: TestClient, made: Any, database: Engine, raw_redis: redis.Redis) -> Iterator[Api]:
    """A pool to sell with two machines, one never measured; a contract and a draft."""
    for name in TENANTS:
        made("tenants", name=name)
    for name in (POOL, "empty"):
        made("models", name=name, context_tokens=4_096)
        made("prices", model=name, free=True)
    for name in ("i-1", "i-2"):
        entry = {
            "instance": name, "model": POOL, "pool": POOL, "cell": POOL, "url": "http://127.0.0.1:1",
            "key": None, "epoch": "e",
            "status": "ready", "lease_until_ms": 0, "abort": True, "load": {"running": 0, "waiting": 0,
            "kv_usage": 0.0},
        }  # fmt: skip
        raw_redis.hset(redis_keys.INSTANCES, name, json.dumps(entry))
    admin.patch(f"/admin/v1/pools/{POOL}", json={"instances": 50})
    made("calibrations", pool=POOL, model=POOL, weights={"w_in_mu": 1000, "w_cached_mu": 100,
    "w_out_mu": 4000}, error="0.03", sequences=16,
         capacity_units_per_second="1000", tpot_target_ms=50, ttft_target_ms=1000, hardware="cpu",
         engine_version="0.32")  # fmt: skip
    common = {"pool": POOL, "units": 10, "until": "2101-01-01", "notice_days": 30}
    made("contracts", tenant="acme", **common)
    made("contracts", tenant="bolt", draft=True, **common)
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield Api(admin, connection)


def spoilt(draw: Any, body: Any) -> Any:
    """The same with one thing wrong, wherever it is."""
    if isinstance(body, list) and body and draw(st.booleans()):
        return [spoilt(draw, body[0]), *body[1:]]
    if not isinstance(body, dict) or not body:
        return draw(ANY_JSON)
    name = draw(st.sampled_from(sorted(body)))
    match draw(st.sampled_from(["value", "value", "value", "missing", "unknown"])):
        case "missing":
            return {field: value for field, value in body.items() if field != name}
        case "unknown":
            return {**body, draw(st.sampled_from(["role", "tenant_id", "a\x00b", "__proto__", "\ud800"])): 1}
        case _:
            return {**body, name: spoilt(draw, body[name])}


def written(body: Any) -> bytes:
    """As bytes on the wire, the raw pieces in their places."""
    content = json.dumps(body)
    for word, raw in RAW.items():
        content = content.replace(f'"{word}"', raw)
    return content.encode()


@st.composite
def requests(draw: Any, api: Api) -> tuple[str, str, bytes | None]:
    """Method, path with its query, body."""
    method, path, operation = draw(st.sampled_from(api.operations))
    query: list[tuple[str, Any]] = []
    for parameter in operation.get("parameters", []):
        name = parameter["name"]
        if parameter["in"] == "header":
            continue
        odd = draw(st.integers(0, 3)) == 0
        if parameter["in"] == "path":
            known = api.ids.get(name, [POOL, "empty"])
            # Which one, and not its name: what was made is called otherwise each time.
            given_name = (
                draw(st.sampled_from(ODD_TEXTS)) if odd else known[-1 - draw(st.integers(0, 5)) % len(known)]
            )
            path = path.replace(f"{{{name}}}", quote(given_name.encode("utf-8", "surrogatepass"), safe="/"))
        elif draw(st.booleans()):
            value = draw(st.sampled_from(ODD_TEXTS)) if odd else draw(api.values(parameter["schema"], name))
            query.append((name, "" if value is None else str(value).encode("utf-8", "surrogatepass")))
    content = None
    if "requestBody" in operation:
        body = draw(api.values(operation["requestBody"]["content"]["application/json"]["schema"]))
        for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2, 3]))):
            body = spoilt(draw, body)
        content = written(body)
    return method, f"{path}?{urlencode(query)}" if query else path, content


def asked(api: Api, method: str, path: str, content: bytes | None) -> Any:
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "content-type": "application/json"}
    return api.client.request(method, path, content=content, headers=headers)


def assert_ours(answer: Any) -> None:
    """A success, or a refusal in the one form, with a code."""
    assert answer.headers["x-request-id"].startswith("adm_")
    if answer.is_success:
        assert isinstance(answer.json(), dict)
        return
    assert 400 <= answer.status_code < 500, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    assert error["param"] is None or isinstance(error["param"], str)


def with_one_odd(body: Any) -> Iterator[Any]:
    """The body with each value in turn in each of its places; as with examples, a part of them, drawn anew in
    each run.
    """
    if isinstance(body, dict):
        for name, value in body.items():
            yield from ({**body, name: odd} for odd in with_one_odd(value))
    elif isinstance(body, list) and body:
        yield from ([odd] for odd in with_one_odd(body[0]))
    else:
        odd = (*ODD_NUMBERS, *ODD_TEXTS, *RAW, None, True, [], {}, ["x"], {"a\x00": 1})
        yield from random.sample(odd, examples(len(odd)))


def test_fault_16_each_field_of_each_body_takes_any_value_and_answers(api: Api) -> None:
    before, asked_for = api.rows(), 0
    for method, path, operation in api.operations:
        if "requestBody" not in operation:
            continue
        route = path.format(pool=POOL, contract_id=api.ids["contract_id"][-1])
        for body in with_one_odd(
            api.right(operation["requestBody"]["content"]["application/json"]["schema"])
        ):
            answer = asked(api, method, route, written(body))
            assert_ours(answer)
            after = api.rows()
            assert answer.is_success or after == before, (method, route, body, answer.text)
            before, asked_for = after, asked_for + 1
    assert asked_for > examples(2_000)


def test_fault_16_any_request_is_answered_and_a_refused_one_changes_nothing(api: Api) -> None:
    taken: set[str] = set()

    @settings(max_examples=examples(350), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests(api), min_size=4, max_size=4))
    def check(several: list[tuple[str, str, bytes | None]]) -> None:
        before = api.rows()
        for method, path, content in several:
            answer = asked(api, method, path, content)
            assert_ours(answer)
            after = api.rows()
            if not answer.is_success or method == "GET":
                assert after == before, (method, path, content, answer.text)
            else:
                api.learn(answer.json())
                taken.add(path.split("/")[3].partition("?")[0])
            before = after

    # Until some of each were right: what is behind the checks must be asked too.
    for _ in range(30):
        check()
        if taken >= (wanted := {"pools", "calibrations", "contracts", "reclaims"}):
            break
    assert taken >= wanted
