"""Message batches by Anthropic's SDK, unchanged."""

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError, NotFoundError, UnprocessableEntityError
from anthropic.types.messages import MessageBatch

from loadtest.faults.parts import MODEL
from tests.billing.batch.conftest import BatchStack
from tests.fixtures.gateway import wait_until


@pytest.fixture
def client(batch_stack: BatchStack) -> Iterator[Anthropic]:
    with batch_stack.anthropic(batch_stack.tenant()) as client:
        yield client


def message(custom_id: str, **params: Any) -> Any:
    asked = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "Say hello."}]}
    return {"custom_id": custom_id, "params": asked | params}


def ended(client: Anthropic, batch_id: str) -> MessageBatch:
    wait_until(
        lambda: client.messages.batches.retrieve(batch_id).processing_status == "ended", "end of the batch"
    )
    return client.messages.batches.retrieve(batch_id)


def test_a_message_batch_has_a_result_for_each_request(batch_stack: BatchStack, client: Anthropic) -> None:
    requests = [*(message(f"good-{n}") for n in range(10)), message("bad", temperature=99)]
    made = client.messages.batches.create(requests=requests)
    assert made.processing_status == "in_progress"
    assert (made.request_counts.processing, made.results_url, made.ended_at) == (11, None, None)
    batch = ended(client, made.id)
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.processing, counts.canceled) == (10, 1, 0, 0)
    assert batch.ended_at is not None
    assert batch.created_at < batch.ended_at < batch.expires_at
    results = list(client.messages.batches.results(made.id))
    assert sorted(each.custom_id for each in results) == sorted(each["custom_id"] for each in requests)
    for each in results:
        if each.result.type == "succeeded":
            assert each.result.message.usage.output_tokens == 4
            assert each.result.message.model == MODEL
        else:
            assert each.result.type == "errored"
            assert each.result.error.error.type == "invalid_request_error"
    assert batch_stack.billed(str(client.api_key)) == 10


def test_fault_22_a_message_batch_is_created_once_under_its_key(
    batch_stack: BatchStack, client: Anthropic
) -> None:
    requests, headers = [message("a")], {"Idempotency-Key": "k"}
    first = client.messages.batches.create(requests=requests, extra_headers=headers)
    again = client.messages.batches.create(requests=requests, extra_headers=headers)
    assert again == first
    with pytest.raises(UnprocessableEntityError) as reused:
        client.messages.batches.create(requests=[message("b")], extra_headers=headers)
    assert reused.value.body["error"]["details"]["error_code"] == "idempotency_key_reused"  # type: ignore[index]
    assert [each.id for each in client.messages.batches.list()] == [first.id]
    ended(client, first.id)


def test_a_cancelled_batch_has_results_for_all(batch_stack: BatchStack, client: Anthropic) -> None:
    requests = [message(f"m-{n}", max_tokens=60) for n in range(300)]
    made = client.messages.batches.create(requests=requests)
    wait_until(lambda: _completed(batch_stack, made.id) > 0, "first answer")
    canceled = client.messages.batches.cancel(made.id)
    assert canceled.processing_status == "canceling"
    assert canceled.cancel_initiated_at is not None
    batch = ended(client, made.id)
    kinds = [each.result.type for each in client.messages.batches.results(made.id)]
    assert len(kinds) == 300
    assert kinds.count("succeeded") == batch.request_counts.succeeded > 0
    assert kinds.count("canceled") == batch.request_counts.canceled > 0
    assert batch_stack.billed(str(client.api_key)) == batch.request_counts.succeeded


def _completed(batch_stack: BatchStack, batch_id: str) -> int:
    found = batch_stack.installation.sql("select completed from batch where batch_id = %s", batch_id)
    return int(found[0][0])


def test_a_wrong_request_refuses_the_batch_and_nothing_is_kept(
    batch_stack: BatchStack, client: Anthropic
) -> None:
    wrong: list[tuple[list[Any], str]] = [
        ([], "no lines"),
        ([message("a"), message("a")], "requests.1: "),
        ([message("a b")], "custom_id"),
        ([message("a", model="unknown")], "does not exist"),
        ([message("a"), message("b", model="other")], "same model"),
        ([message("a", stream=True)], "streamed"),
        ([{"params": {}}], "custom_id"),
    ]
    before = batch_stack.stored_at_rest()
    for requests, said in wrong:
        with pytest.raises((BadRequestError, NotFoundError)) as refused:
            client.messages.batches.create(requests=requests)
        assert said in str(refused.value)
        assert not list(client.messages.batches.list())
    # Once for all of them: what was begun is swept away every ten seconds.
    wait_until(lambda: batch_stack.stored_files() == before, "nothing stored")


def test_a_body_that_is_no_batch_is_refused(batch_stack: BatchStack, client: Anthropic) -> None:
    with batch_stack.plain(str(client.api_key)) as plain:
        for body in (b"", b"[]", b"{", b'{"requests": [1]}', b'{"requests": [{}], "more": 1}'):
            answer = plain.post("/v1/messages/batches", content=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_batches_are_listed_by_pages_and_deleted(batch_stack: BatchStack, client: Anthropic) -> None:
    ids = [client.messages.batches.create(requests=[message("a")]).id for _ in range(3)]
    assert [each.id for each in client.messages.batches.list(limit=2)] == ids[::-1]
    before = client.messages.batches.list(limit=1, before_id=ids[0])
    assert [each.id for each in before.data] == [ids[1]]
    for batch_id in ids:
        ended(client, batch_id)
    held = batch_stack.stored_at_rest()
    assert client.messages.batches.delete(ids[0]).type == "message_batch_deleted"
    assert [each.id for each in client.messages.batches.list()] == ids[:0:-1]
    with pytest.raises(NotFoundError):
        client.messages.batches.results(ids[0])
    wait_until(lambda: batch_stack.stored_files() < held, "less that is stored")


def test_another_tenants_batch_is_as_an_unknown_one(batch_stack: BatchStack, client: Anthropic) -> None:
    other = batch_stack.anthropic(batch_stack.tenant())
    made = client.messages.batches.create(requests=[message("a")])
    ended(client, made.id)
    calls: list[Any] = [other.messages.batches.retrieve, other.messages.batches.cancel,
                        other.messages.batches.delete]  # fmt: skip
    for call in calls:
        said = []
        for batch_id in (made.id, "msgbatch_" + "0" * 16):
            with pytest.raises(NotFoundError) as refused:
                call(batch_id)
            said.append(refused.value.body)
        assert said[0] == said[1]
    assert not list(batch_stack.openai(str(client.api_key)).files.list()), "a message batch has no files"
