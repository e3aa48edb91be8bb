"""The store of objects: a folder, and a bucket of a real S3 server's protocol."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from obstore.exceptions import AlreadyExistsError

from billing.batch.objects import Objects, input_object
from billing.batch.settings import BatchSettings
from loadtest import plain_http
from tests.fixtures.gateway import wait_until
from tests.fixtures.valkey import free_port

BUCKET = "batches"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server with an empty bucket."""
    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "s3.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)],
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), "S3", timeout_s=60, instead=log.read_text)
        assert plain_http.request("PUT", f"{url}/{BUCKET}", timeout=10).status_code == 200
        yield url
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        return plain_http.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(params=["folder", "s3"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Objects]:
    umask = os.umask(0o022)
    if request.param == "s3":
        environment = {
            "AWS_ENDPOINT": request.getfixturevalue("s3"), "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }  # fmt: skip
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Objects(
            BatchSettings(home=tmp_path, store_url=f"s3://{BUCKET}/{tmp_path.name}", store_allow_http=True)
        )
    else:
        yield Objects(BatchSettings(home=tmp_path))
    os.umask(umask)


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([65 + number]) * size


async def test_what_is_streamed_in_is_streamed_out(objects: Objects) -> None:
    name = input_object("file-1")
    await objects.put_stream(name, pieces(3, 7_000_000, 5))
    content = b"".join([piece async for piece in objects.stream(name)])
    assert content == b"A" * 3 + b"B" * 7_000_000 + b"C" * 5
    assert b"".join(objects.read(name)) == content
    assert await objects.read_range(name, 1, 4) == b"AABB"
    places = [(0, 2), (2, 3), (1_500_000, 10), (7_000_001, 7)]
    found = list(objects.read_places(name, places))
    assert found == [content[start : start + length] for start, length in places]


async def test_an_upload_that_breaks_off_leaves_nothing(objects: Objects) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 12_000_000
        raise ConnectionError("the caller is gone")

    with pytest.raises(ConnectionError):
        await objects.put_stream(input_object("file-2"), broken())
    assert objects.names("inputs/") == []


def test_an_object_is_created_once(objects: Objects) -> None:
    objects.create("parts/batch_1/a", b"first")
    with pytest.raises(AlreadyExistsError):
        objects.create("parts/batch_1/a", b"second")
    assert b"".join(objects.read("parts/batch_1/a")) == b"first"


def test_objects_are_named_and_deleted(objects: Objects) -> None:
    for name in ("parts/batch_1/a", "parts/batch_1/b", "parts/batch_2/a"):
        objects.create(name, b"x")
    assert sorted(objects.names("parts/batch_1/")) == ["parts/batch_1/a", "parts/batch_1/b"]
    objects.delete(["parts/batch_1/a", "parts/batch_1/a", "parts/nothing/a"])
    assert objects.names("parts/batch_1/") == ["parts/batch_1/b"]
    with pytest.raises(FileNotFoundError):
        list(objects.read("parts/batch_1/a"))


async def test_files_are_their_owners_alone_and_what_was_torn_is_removed(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        objects = Objects(BatchSettings(home=tmp_path))
        await objects.put_stream(input_object("file-1"), pieces(10))
        objects.create("parts/batch_1/a", b"x")
    finally:
        os.umask(umask)
    folder = tmp_path / "batch"
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    torn = folder / "inputs" / "file-2#1"
    torn.write_bytes(b"half a prompt")
    objects.remove_torn(3_600)
    assert torn.exists(), "it may still be written"
    objects.remove_torn(-1)
    assert not torn.exists()
    assert (folder / "inputs" / "file-1").exists()
