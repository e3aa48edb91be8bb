"""Files and batches by OpenAI's SDK, unchanged."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI, UnprocessableEntityError

from loadtest import plain_http
from loadtest.faults.parts import MODEL
from tests.billing.batch.conftest import BatchStack
from tests.billing.batch.lines import chat
from tests.fixtures.gateway import wait_until


@pytest.fixture
def client(batch_stack: BatchStack) -> Iterator[OpenAI]:
    with batch_stack.openai(batch_stack.tenant()) as client:
        yield client


def test_a_batch_is_answered_line_by_line_and_each_line_billed_once(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    made = batch_stack.create(client, [chat(f"line-{n}") for n in range(20)], metadata={"run": "first"})
    assert (made.status, made.metadata, made.completion_window) == ("validating", {"run": "first"}, "24h")
    batch = batch_stack.ended(client, made.id)
    assert (batch.status, batch.model, batch.error_file_id, batch.errors) == ("completed", MODEL, None, None)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0) <= batch.expires_at
    lines = batch_stack.lines_of(client, batch.output_file_id)
    assert sorted(line["custom_id"] for line in lines) == sorted(f"line-{n}" for n in range(20))
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in lines)
    assert all(line["response"]["body"]["service_tier"] == "flex" for line in lines)
    receipts = [batch_stack.receipt(client.api_key, line["response"]["request_id"]) for line in lines]
    assert {(receipt["class"], receipt["ending"]) for receipt in receipts} == {("flex", "complete")}
    assert {receipt["line"] for receipt in receipts} == {f"{batch.id}/{n}" for n in range(20)}
    usage = batch.usage
    assert usage is not None
    assert usage.input_tokens == sum(receipt["billed"]["prompt"] for receipt in receipts)
    assert usage.output_tokens == sum(receipt["billed"]["output"] for receipt in receipts)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "Say hello.", "max_tokens": 3}),
        ("/v1/responses", {"input": "Say hello.", "max_output_tokens": 16}),
    ],
)
def test_other_endpoints_are_served_too(
    batch_stack: BatchStack, client: OpenAI, url: str, body: dict[str, Any]
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": MODEL, **body}}
    batch = batch_stack.ended(client, batch_stack.create(client, [line], endpoint=url).id)
    (answered,) = batch_stack.lines_of(client, batch.output_file_id)
    assert answered["response"]["body"]["model"] == MODEL
    assert batch.usage is not None
    assert batch.usage.output_tokens > 0


def test_a_line_that_the_gateway_refuses_is_in_the_error_file(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    lines = [chat("good"), chat("bad", temperature=99)]
    batch = batch_stack.ended(client, batch_stack.create(client, lines).id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    (answered,) = batch_stack.lines_of(client, batch.output_file_id)
    (failed,) = batch_stack.lines_of(client, batch.error_file_id)
    assert (answered["custom_id"], failed["custom_id"]) == ("good", "bad")
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["param"] == "temperature"


def test_fault_30_lines_with_impossible_usage_are_delivered_and_in_no_figure(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    """Their figures together are more than a column of SQL holds."""
    lying = [chat(f"l{n}", f"[[fault:usage=huge_prompt]] {n}") for n in range(2)]
    batch = batch_stack.ended(client, batch_stack.create(client, [*lying, chat("good")]).id)
    lines = batch_stack.lines_of(client, batch.output_file_id)
    assert {line["custom_id"] for line in lines} == {"l0", "l1", "good"}
    receipts = [batch_stack.receipt(client.api_key, line["response"]["request_id"]) for line in lines]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(receipt["billed"]["prompt"] for receipt in receipts) < 100
    assert batch.usage.output_tokens == sum(receipt["billed"]["output"] for receipt in receipts) > 0


def test_broken_lines_are_named_and_nothing_is_sent(batch_stack: BatchStack, client: OpenAI) -> None:
    lines: list[Any] = [chat("a"), "{", chat("a"), chat("b", model="other")]
    batch = batch_stack.ended(client, batch_stack.create(client, lines).id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    found = [(error.line, error.code) for error in batch.errors.data or []]
    assert found == [(2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "mismatched_model")]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_an_unknown_model_and_a_foreign_private_one_fail_alike(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    batch_stack.private_model("theirs")
    said = []
    for model in ("unknown", "theirs"):
        batch = batch_stack.ended(client, batch_stack.create(client, [chat("a", model=model)]).id)
        assert batch.errors is not None
        (error,) = batch.errors.data or []
        said.append((error.code, str(error.message).replace(model, "…")))
    assert said[0] == said[1]
    assert said[0][0] == "model_not_found"


def test_a_private_model_takes_no_batch_unless_its_owner_allows_it(batch_stack: BatchStack) -> None:
    key = batch_stack.private_model("mine")
    client = batch_stack.openai(key)
    batch = batch_stack.ended(client, batch_stack.create(client, [chat("a", model="mine")]).id)
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or []] == ["model_takes_no_batches"]
    batch_stack.installation.patch("models/mine", {"takes_batches": True})
    made = batch_stack.create(client, [chat("a", model="mine")])
    wait_until(lambda: client.batches.retrieve(made.id).status == "in_progress", "batch that began")
    client.batches.cancel(made.id)
    assert batch_stack.ended(client, made.id).status == "cancelled"


def test_a_batch_that_can_never_fit_is_refused_and_open_ones_are_held(batch_stack: BatchStack) -> None:
    key = batch_stack.tenant(limits={"requests_per_day": 10})
    client = batch_stack.openai(key)
    batch = batch_stack.ended(client, batch_stack.create(client, [chat(str(n)) for n in range(11)]).id)
    assert batch.errors is not None
    (error,) = batch.errors.data or []
    assert error.code == "limit_exceeded"
    assert "11 requests" in str(error.message)
    assert "10" in str(error.message)
    slow = [chat(str(n), max_tokens=1500) for n in range(8)]
    first = batch_stack.create(client, slow)
    wait_until(lambda: client.batches.retrieve(first.id).status == "in_progress", "first batch")
    second = batch_stack.ended(client, batch_stack.create(client, slow).id)
    assert second.errors is not None
    assert [error.code for error in second.errors.data or []] == ["limit_exceeded"]
    client.batches.cancel(first.id)


def test_a_cancelled_batch_delivers_what_was_answered(batch_stack: BatchStack, client: OpenAI) -> None:
    lines = [chat(f"line-{n}", max_tokens=60) for n in range(400)]
    made = batch_stack.create(client, lines)
    wait_until(
        lambda: (
            (counts := client.batches.retrieve(made.id).request_counts) is not None and counts.completed > 0
        ),
        "first answer",
    )
    assert client.batches.cancel(made.id).status == "cancelling"
    batch = batch_stack.ended(client, made.id)
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert 0 < batch.request_counts.completed < 400
    done = batch_stack.lines_of(client, batch.output_file_id)
    rest = batch_stack.lines_of(client, batch.error_file_id)
    assert len(done) == batch.request_counts.completed
    assert {line["error"]["code"] for line in rest} == {"batch_cancelled"}
    assert sorted(line["custom_id"] for line in done + rest) == sorted(f"line-{n}" for n in range(400))
    assert batch_stack.billed(client.api_key) == len(done)
    with pytest.raises(BadRequestError):
        client.batches.cancel(made.id)


def test_fault_41_a_gateway_and_a_batch_process_that_are_told_to_stop_end_their_lines(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    made = batch_stack.create(client, [chat(f"line-{n}", max_tokens=100) for n in range(120)])

    def begun() -> bool:
        counts = client.batches.retrieve(made.id).request_counts
        return counts is not None and counts.completed > 0

    wait_until(begun, "first answer")
    for part in (batch_stack.installation.gateways[1], batch_stack.installation.batches[0]):
        part.stop()
        part.start()
    batch = batch_stack.ended(client, made.id)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 120, "completed": 120, "failed": 0}
    assert batch_stack.billed(client.api_key) == 120
    query = "select count(*) from usage_event where line like %s and produced_output > 0"
    sent = batch_stack.installation.sql(query, f"{made.id}/%")
    assert sent == [(120,)], "no line was answered twice"


def test_a_batch_expires_and_delivers_what_was_answered(batch_stack: BatchStack, client: OpenAI) -> None:
    made = batch_stack.create(client, [chat(f"line-{n}", max_tokens=60) for n in range(400)])
    wait_until(
        lambda: (
            (counts := client.batches.retrieve(made.id).request_counts) is not None and counts.completed > 0
        ),
        "first answer",
    )
    batch_stack.installation.execute("update batch set expires_ms = 0 where batch_id = %s", made.id)
    batch = batch_stack.ended(client, made.id)
    assert batch.status == "expired"
    done = batch_stack.lines_of(client, batch.output_file_id)
    rest = batch_stack.lines_of(client, batch.error_file_id)
    assert {line["error"]["code"] for line in rest} == {"batch_expired"}
    assert len(done) + len(rest) == 400
    assert batch_stack.billed(client.api_key) == len(done)


def test_files_are_listed_read_and_deleted(batch_stack: BatchStack, client: OpenAI) -> None:
    ids = [batch_stack.upload(client, [chat(str(n))]) for n in range(3)]
    file = client.files.retrieve(ids[0])
    assert (file.purpose, file.filename, file.status) == ("batch", "input.jsonl", "processed")
    assert file.expires_at == file.created_at + 30 * 86_400
    assert client.files.content(ids[0]).content == json.dumps(chat("0")).encode()
    assert file.bytes == len(json.dumps(chat("0")))
    assert [each.id for each in client.files.list(limit=2)] == ids[::-1]
    assert [each.id for each in client.files.list(order="asc", purpose="batch")] == ids
    assert client.files.delete(ids[1]).deleted
    assert [each.id for each in client.files.list()] == [ids[2], ids[0]]
    with pytest.raises(NotFoundError):
        client.files.retrieve(ids[1])
    kept = client.files.create(
        file=("f.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert kept.expires_at == kept.created_at + 3600


def test_batches_are_listed_by_pages(batch_stack: BatchStack, client: OpenAI) -> None:
    ids = [batch_stack.create(client, [chat("a")]).id for _ in range(3)]
    assert [each.id for each in client.batches.list(limit=2)] == ids[::-1]
    assert client.batches.list(limit=2).has_more


def test_another_tenants_file_and_batch_are_as_unknown_ones(batch_stack: BatchStack, client: OpenAI) -> None:
    other = batch_stack.openai(batch_stack.tenant())
    file_id = batch_stack.upload(client, [chat("a")])
    batch_id = batch_stack.create(client, [chat("a")]).id
    unknown_file, unknown_batch = "file-" + "0" * 32, "batch_" + "0" * 16
    asked: list[tuple[Any, str, str]] = [
        (other.files.retrieve, file_id, unknown_file),
        (other.files.content, file_id, unknown_file),
        (other.files.delete, file_id, unknown_file),
        (other.batches.retrieve, batch_id, unknown_batch),
        (other.batches.cancel, batch_id, unknown_batch),
    ]
    for call, theirs, unknown in asked:
        with pytest.raises(NotFoundError) as not_theirs:
            call(theirs)
        with pytest.raises(NotFoundError) as not_there:
            call(unknown)
        assert not_theirs.value.body == not_there.value.body
    with pytest.raises(BadRequestError) as refused:
        other.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert refused.value.code == "file_not_found"
    assert not list(other.files.list())
    assert not list(other.batches.list())


def test_a_key_for_some_models_sees_only_what_it_made(batch_stack: BatchStack, client: OpenAI) -> None:
    tenant = batch_stack.tenant_of[client.api_key]
    narrow = batch_stack.openai(batch_stack.key(tenant, models=[MODEL]))
    of_other = batch_stack.upload(client, [chat("a")])
    own = batch_stack.upload(narrow, [chat("a")])
    with pytest.raises(NotFoundError):
        narrow.files.content(of_other)
    assert [each.id for each in narrow.files.list()] == [own]
    assert client.files.retrieve(own).id == own


def test_a_project_does_not_see_anothers_files(batch_stack: BatchStack, client: OpenAI) -> None:
    tenant = batch_stack.tenant_of[client.api_key]
    batch_stack.installation.post("projects", {"tenant": tenant, "name": "second"})
    second = batch_stack.openai(batch_stack.key(tenant, project="second"))
    file_id = batch_stack.upload(client, [chat("a")])
    with pytest.raises(NotFoundError):
        second.files.retrieve(file_id)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"endpoint": "/v1/messages"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
        ({"input_file_id": None}, "input_file_id"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_batch_that_is_asked_for_wrongly_is_refused_by_name(
    batch_stack: BatchStack, client: OpenAI, change: dict[str, Any], param: str
) -> None:
    body = {
        "input_file_id": batch_stack.upload(client, [chat("a")]),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    with batch_stack.plain(client.api_key) as plain:
        answer = plain.post("/v1/batches", json=body | change)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.headers["x-request-id"].startswith("req_")


def test_fault_22_a_file_and_a_batch_are_created_once_under_their_key(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    lines = json.dumps(chat("a")).encode()

    def upload(key: str, content: bytes = lines) -> str:
        return client.files.create(
            file=("input.jsonl", content), purpose="batch", extra_headers={"Idempotency-Key": key}
        ).id

    before = batch_stack.stored_at_rest()
    with ThreadPoolExecutor(8) as pool:  # its two further tries are the SDK's own, after a 409
        ids = set(pool.map(lambda _: upload("file-1"), range(8)))
    assert len(ids) == 1
    (file_id,) = ids
    with pytest.raises(UnprocessableEntityError) as reused:
        upload("file-1", lines + b"\n" + lines)
    assert reused.value.code == "idempotency_key_reused"
    wait_until(
        lambda: len(batch_stack.stored_files() - before) == 1,
        "one object",
        instead=lambda: batch_stack.stored_files() - before,
    )
    with batch_stack.openai(batch_stack.tenant()) as stranger:
        assert stranger.files.create(
            file=("input.jsonl", lines), purpose="batch", extra_headers={"Idempotency-Key": "file-1"}
        ).id != file_id  # fmt: skip

    words: Any = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    headers = {"Idempotency-Key": "batch-1"}
    first = client.batches.create(**words, extra_headers=headers)
    batch_stack.ended(client, first.id)
    again = client.batches.with_raw_response.create(**words, extra_headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse() == first, "as it was answered first"
    with pytest.raises(UnprocessableEntityError):
        client.batches.create(**words, metadata={"a": "b"}, extra_headers=headers)
    missing = words | {"input_file_id": "file-none"}
    for _ in range(2):  # what was refused leaves its key free
        with pytest.raises(BadRequestError):
            client.batches.create(**missing, extra_headers={"Idempotency-Key": "batch-2"})
    second = client.batches.create(**words, extra_headers={"Idempotency-Key": "batch-2"})
    assert len(client.batches.list().data) == 2
    batch_stack.ended(client, second.id)


def test_a_file_that_is_too_large_is_refused_and_leaves_nothing(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    before = batch_stack.stored_at_rest()
    content = b"x" * (batch_stack.FILE_BYTES_MAX + 1)
    with pytest.raises(APIStatusError) as refused:
        client.files.create(file=("big.jsonl", content), purpose="batch")
    assert refused.value.status_code == 413
    wait_until(lambda: batch_stack.stored_files() == before, "nothing stored")


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ({"file": ("f", b"{}")}, {"purpose": "fine-tune"}),
        ({"file": ("f", b"{}")}, {}),
        ({"file": ("f", b"{}")}, {"purpose": "batch", "more": "1"}),
        ({"file": ("f", b"{}")}, {"purpose": "batch", "expires_after[anchor]": "created_at"}),
        ({}, {"purpose": "batch"}),
    ],
)
def test_an_upload_that_is_asked_for_wrongly_is_refused(
    batch_stack: BatchStack, client: OpenAI, files: Any, fields: dict[str, str]
) -> None:
    with batch_stack.plain(client.api_key) as plain:
        assert plain.post("/v1/files", files=files, data=fields).status_code == 400


def test_files_are_of_mode_0600_and_no_prompt_is_anywhere_else(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    canary = f"canary{os.urandom(8).hex()}"
    batch = batch_stack.ended(client, batch_stack.create(client, [chat("a", canary), chat(canary)]).id)
    assert batch.status == "completed"
    folder = Path(batch_stack.installation.folder)
    holding = [path for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert holding
    for path in holding:
        assert path.is_relative_to(folder / "batch-home" / "batch"), path
        assert path.stat().st_mode & 0o777 == 0o600
    for page in batch_stack.metrics_pages():
        assert canary not in page


def test_without_a_key_there_is_nothing(batch_stack: BatchStack) -> None:
    for base in (batch_stack.installation.gateway_urls[0], batch_stack.installation.batch_urls[0]):
        answer = plain_http.get(f"{base}/v1/files", headers={"authorization": "Bearer sk-wrong"}, timeout=5)
        assert answer.status_code == 401
    headers = {"authorization": "Bearer service-key"}
    answer = plain_http.get(f"{batch_stack.installation.batch_urls[0]}/v1/files", headers=headers, timeout=5)
    assert answer.status_code == 401, "a gateway says for whom it asks"


def test_a_ticket_of_a_line_is_needed_where_lines_are_taken(batch_stack: BatchStack, client: OpenAI) -> None:
    url = f"{batch_stack.installation.gateway_urls[0]}/internal/lines/v1/chat/completions"
    for bearer in (
        client.api_key,
        "service-key",
        "/".join(["0" * 64, "batch_" + "0" * 16, "0/1/9", "0" * 64]),
    ):
        answer = httpx.post(
            url, headers={"authorization": f"Bearer {bearer}"}, json=chat("a")["body"], trust_env=False
        )
        assert answer.status_code == 401


def test_lines_that_a_limit_refuses_are_sent_again_until_they_fit(batch_stack: BatchStack) -> None:
    client = batch_stack.openai(batch_stack.tenant(limits={"concurrency": 1}))
    batch = batch_stack.ended(client, batch_stack.create(client, [chat(f"line-{n}") for n in range(8)]).id)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 8, "completed": 8, "failed": 0}


def test_a_file_whose_time_is_over_is_gone_and_so_are_its_bytes(
    batch_stack: BatchStack, client: OpenAI
) -> None:
    batch = batch_stack.ended(client, batch_stack.create(client, [chat("a")]).id)
    assert batch.output_file_id is not None
    held = batch_stack.stored_at_rest()
    batch_stack.installation.execute(
        "update batch_file set expires_ms = 0 where file_id = any(%s)",
        [batch.output_file_id, batch.input_file_id],
    )
    for file_id in (batch.output_file_id, batch.input_file_id):
        with pytest.raises(NotFoundError):
            client.files.content(file_id)
    wait_until(lambda: len(held - batch_stack.stored_files()) == 2, "files that are deleted")


def test_an_input_that_a_batch_reads_is_not_deleted(batch_stack: BatchStack, client: OpenAI) -> None:
    made = batch_stack.create(client, [chat(str(n), max_tokens=1500) for n in range(4)])
    with pytest.raises(BadRequestError) as refused:
        client.files.delete(made.input_file_id)
    assert refused.value.code == "file_in_use"
    client.batches.cancel(made.id)
