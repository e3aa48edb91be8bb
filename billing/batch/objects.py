"""The store of objects: a folder, or a bucket by its URL. Objects are written once, under names that nobody
else uses, and never changed.

Prompts and answers of batches are stored here and nowhere else. In a folder every file has mode 0600.
"""

import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from billing.batch.settings import BatchSettings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PIECE_BYTES: Final = 1024 * 1024


class Objects:
    """One store. Names have no place for a caller's text."""

    def __init__(self, settings: BatchSettings) -> None:
        """Opens it. Raises ValueError if the URL cannot be used, OSError if the folder cannot."""
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url

        self._store: ObjectStore
        self._folder: Path | None
        if settings.store_url:
            # obstore reads the rest from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT, …
            self._folder = None
            client = {"timeout": "120s", "allow_http": settings.store_allow_http}
            try:
                self._store = cast(Any, from_url)(settings.store_url, client_options=client)
            except (BaseError, ValueError) as exc:
                said = str(exc).splitlines()[0]
                raise ValueError(f"TAAS_BATCH_STORE_URL cannot be used: {said}") from exc
        else:
            self._folder = settings.folder
            os.umask(0o077)  # of this process, which writes no other files
            settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._store = LocalStore(settings.folder.resolve())

    async def put_stream(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write what comes, piece by piece. It is there as a whole or not at all: an error among the pieces
        is raised, and leaves nothing.
        """
        import obstore

        await obstore.put_async(self._store, name, pieces, max_concurrency=2)

    def create(self, name: str, content: bytes) -> None:
        """Write an object that nobody has written. Raises obstore's AlreadyExistsError."""
        import obstore

        obstore.put(self._store, name, content, mode="create")

    async def read_range(self, name: str, start: int, length: int) -> bytes:
        """A part of an object."""
        import obstore

        return bytes(await obstore.get_range_async(self._store, name, start=start, length=length))

    def read_places(self, name: str, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Parts of an object by (start, length), in their order. It is read once, piece by piece."""
        pieces, held, begins = self.read(name), bytearray(), 0
        for start, length in places:
            while begins + len(held) < start + length:
                if begins + len(held) <= start:  # nothing of what is held is of this part
                    begins += len(held)
                    held.clear()
                held += next(pieces)
            del held[: start - begins]
            begins = start
            yield bytes(held[:length])

    def read(self, name: str) -> Iterator[bytes]:
        """All of an object, piece by piece."""
        import obstore

        for piece in obstore.get(self._store, name).stream(min_chunk_size=_PIECE_BYTES):
            yield bytes(piece)

    async def stream(self, name: str) -> AsyncIterator[bytes]:
        """The same, not blocking."""
        import obstore

        found = await obstore.get_async(self._store, name)
        async for piece in found.stream(min_chunk_size=_PIECE_BYTES):
            yield bytes(piece)

    def names(self, prefix: str) -> list[str]:
        """Every object under a prefix."""
        import obstore

        return [meta["path"] for page in obstore.list(self._store, prefix) for meta in page]

    def remove_torn(self, older_than_s: float) -> None:
        """Remove what a process left in the folder when it was killed while it wrote. A bucket drops such
        parts by a rule of its own.
        """
        if self._folder is None:
            return
        before = time.time() - older_than_s
        for path in self._folder.glob("*/**/*#*"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def delete(self, names: list[str]) -> None:
        """Delete objects; one that is not there is gone already."""
        import obstore

        for name in names:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue


def input_object(file_id: str) -> str:
    """The object of what was uploaded."""
    return f"inputs/{file_id}"
