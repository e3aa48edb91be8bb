"""Settles that Redis could not take, and requests admitted without it, kept on disk until it can. It owns the
files. It knows neither Redis nor what a settle means.

Each process appends to its own file, which it keeps locked. The file of a dead process is unlocked, and the
next process that drains adopts it. `append` hands the record to the operating system at once (kill -9 loses
nothing) and to the disk in batches (a power cut loses the last batch). Sending again is harmless: a settle is
idempotent by request id. `full`: admission must stop before money is lost.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from billing.cell.scripts import Command
from gateway.redis.connection import RedisCommandError
from gateway.redis.journal_records import Admission, Record, command_of, encode, recover

log = logging.getLogger(__name__)

BYTES_MAX: Final = 256 * 1024 * 1024
_BATCH: Final = 64
# Read in one piece: some thousand records, a few ms.
_PIECE_BYTES: Final = 1024 * 1024
_SUFFIX: Final = ".journal"
# Records that Redis refuses for good, and damaged lines: kept for a person to look at, never deleted.
_REJECTED: Final = "rejected"


class Journal:
    """The journal of one process, in a folder that it shares with others."""

    def __init__(self, folder: Path, *, bytes_max: int = BYTES_MAX) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._file = -1
        self._path = folder
        self._bytes = 0
        self._entries = 0
        self._dead_bytes = 0
        self._dead_entries = 0
        # Records that the disk did not take: kept here as long as the process lives.
        self._unwritten: deque[Record] = deque()
        self._sync: asyncio.Task[None] | None = None
        self._dirty = False
        self._sync_failed = False
        self._draining = asyncio.Lock()

    async def open(self) -> None:
        """Start a file of this process's own. Call it in the process that appends, after any fork."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        unlocked = self._folder / f"{name}.new"
        self._file = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._path = self._folder / f"{name}{_SUFFIX}"
        # Other processes can see it only once it is locked.
        unlocked.rename(self._path)
        for path in self._others():
            with contextlib.suppress(FileNotFoundError):
                left = path.read_bytes()
                self._dead_bytes += len(left)
                self._dead_entries += left.count(b"\n")

    @property
    def empty(self) -> bool:
        """Whether no record of this process waits."""
        return self._bytes == 0 and not self._unwritten

    @property
    def entries(self) -> int:
        """How many settles wait, including those of other processes as found at the start."""
        return self._entries + self._dead_entries + len(self._unwritten)

    @property
    def full(self) -> bool:
        """Whether admission must stop: the journal is at its cap, or the disk is full."""
        return self._bytes + self._dead_bytes >= self._bytes_max or bool(self._unwritten) or self._sync_failed

    def append(self, call: Command) -> None:
        """Keep a settle call. It never refuses: past the cap `full` is true, and if the disk fails the call
        stays in memory.
        """
        self._unwritten.append(call)
        self._write()

    def append_admission(self, admission: Admission) -> None:
        """Record a request that is admitted without Redis, so that another process can settle it if this one
        is killed.
        """
        self._unwritten.append(admission)
        self._write()

    @property
    def unsaved(self) -> int:
        """How many settles are neither in Redis nor on the disk: they would be lost with the process."""
        return sum(not isinstance(record, Admission) for record in self._unwritten)

    def write_again(self) -> None:
        """Try again to write what the disk did not take."""
        self._write()

    async def drain(self, execute: Callable[..., Awaitable[Any]]) -> int:
        """Send everything in order, including records of dead processes. Returns how many. Raises
        RedisUnavailable, having lost nothing.
        """
        async with self._draining:
            sent = 0
            for path in self._others():
                sent += await self._drain_dead(path, execute)
            self._dead_bytes = self._dead_entries = 0
            sent += await self._drain_own(execute)
            self._write()
            while self._unwritten:
                record = self._unwritten[0]
                sent += await self._send((command_of(record),), execute)
                # It counts as unsaved until it is in Redis, although the disk may have taken it meanwhile.
                if self._unwritten and self._unwritten[0] is record:
                    self._unwritten.popleft()
            return sent

    async def synced(self) -> None:
        """Wait until all that was appended is on the disk."""
        if self._sync is not None:
            await asyncio.shield(self._sync)

    async def close(self) -> None:
        """Close the file; remove it if it is empty, else leave it to the next process."""
        if self._file < 0:
            return
        self._write()
        await self.synced()
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        if self._bytes == 0:
            os.unlink(self._path)
        os.close(self._file)
        self._file = -1

    def _others(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if path != self._path)

    def _write(self) -> None:
        if not self._unwritten:
            return
        while self._unwritten:
            line = encode(self._unwritten[0])
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    raise OSError("short write")
            except OSError as exc:
                log.error("the journal's disk takes no more", extra={"reason": str(exc)})
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._bytes)
                return
            self._bytes += len(line)
            self._entries += 1
            self._unwritten.popleft()
        self._schedule_sync()

    def _schedule_sync(self) -> None:
        self._dirty = True
        if self._sync is None or self._sync.done():
            self._sync = asyncio.create_task(self._sync_to_disk(), name="journal-sync")

    async def _sync_to_disk(self) -> None:
        while self._dirty:
            self._dirty = False
            try:
                await asyncio.to_thread(os.fsync, self._file)
            except OSError as exc:
                log.error("the journal is not on the disk", extra={"reason": str(exc)})
                self._sync_failed = True

    async def _drain_own(self, execute: Callable[..., Awaitable[Any]]) -> int:
        sent, done = await self._drain_file(self._file, lambda: self._bytes, execute, own=True)
        # No await since the size was last read, so nothing can have been appended.
        if done < self._bytes:
            # Only complete lines are appended, so the disk has damaged these.
            self._reject(os.pread(self._file, self._bytes - done, done), "damaged")
        if self._bytes:
            os.ftruncate(self._file, 0)
            self._bytes = self._entries = 0
            self._sync_failed = False
        return sent

    async def _drain_dead(self, path: Path, execute: Callable[..., Awaitable[Any]]) -> int:
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(file)
            if status.st_nlink == 0:
                return 0
            sent, done = await self._drain_file(file, lambda: status.st_size, execute, own=False)
            if done < status.st_size:
                log.warning("torn tail of a journal cut", extra={"bytes": status.st_size - done})
            os.unlink(path)
        except BlockingIOError:
            return 0
        finally:
            os.close(file)
        return sent

    async def _drain_file(
        self, file: int, size: Callable[[], int], execute: Callable[..., Awaitable[Any]], *, own: bool
    ) -> tuple[int, int]:
        """Send the records of a file, in pieces, so that other tasks can run between. Returns how many were
        sent, and where its complete records end.
        """
        sent = done = 0
        piece = _PIECE_BYTES
        died: list[Command] = []
        while (left := size() - done) > 0:
            unread = os.pread(file, min(piece, left), done)
            recovered = recover(unread, own=own)
            for line in recovered.damaged:
                self._reject(line + b"\n", "damaged")
            sent += await self._send(recovered.commands, execute)
            died += recovered.died
            done += recovered.valid_bytes
            if recovered.valid_bytes:
                piece = _PIECE_BYTES
            elif len(unread) < left:
                piece *= 2  # it contains no complete record
            else:
                break
        return sent + await self._send(died, execute), done

    async def _send(self, commands: Sequence[Command], execute: Callable[..., Awaitable[Any]]) -> int:
        for start in range(0, len(commands), _BATCH):
            batch = commands[start : start + _BATCH]
            outcomes = await asyncio.gather(*(execute(*command) for command in batch), return_exceptions=True)
            for command, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, RedisCommandError):
                    self._reject(encode(command), str(outcome))
                elif isinstance(outcome, BaseException):
                    raise outcome
        return len(commands)

    def _reject(self, line: bytes, reason: str) -> None:
        log.error("a journal record was set aside", extra={"reason": reason})
        with (self._folder / _REJECTED).open("ab") as rejected:
            rejected.write(line)
