"""Reads the engines that were added by hand, once a second each, and keeps load, status and metrics of their
entries in `taas:instances` up to date.

A worker does this for its own engine. This module owns the rhythm, when an engine counts as down, and the
writing of these fields. The projection writes the rest of an entry; a removed entry is left alone. It writes
no SQL: `engine_counters` and the audit store counters.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import redis

from billing.fleet.engine_reading import Counters, NoCounters, Reading, read_engine
from billing.leadership import Leadership
from billing.wire import redis_keys
from billing.wire.certificates import checked_by
from billing.wire.engine_kinds import VLLM, is_provider
from billing.wire.instance_entry import EngineLoad

_log = logging.getLogger(__name__)

# How often `step` should be called: as often as a worker publishes its load.
WATCH_INTERVAL_MS: Final = 1_000
# A refused connection means that nobody listens on the port, which a busy engine never causes. Twice, because
# an engine that restarts at once has hardly been away.
_REFUSED_MOST: Final = 2
# A busy engine may be slow to answer: as many readings in a row as a worker allows its own engine, of some
# seconds each.
_SILENT_MOST: Final = 5
# An engine without load figures is only checked for life, and may be somebody else's service.
_UNCOUNTED_S: Final = 10.0
# More threads than engines that hang at once, so that those never delay the others.
_READERS_MOST: Final = 64
_KV_DIGITS: Final = 4


@dataclass(slots=True)
class WatchedEngine:
    """The state of one engine. `silent` and `refused`: consecutive readings without an answer."""

    reading_now: bool = False
    not_before: float = 0.0
    silent: int = 0
    refused: int = 0

    def take(self, reading: Reading) -> tuple[str, EngineLoad] | None:
        """The status and load to publish; None to leave both until there is proof."""
        if isinstance(reading, Counters | NoCounters) or reading.answers:
            self.silent = self.refused = 0
            return "ready", reading.load if isinstance(reading, Counters) else EngineLoad()
        self.silent += 1
        self.refused = self.refused + 1 if reading.refused else 0
        down = self.refused >= _REFUSED_MOST or self.silent >= _SILENT_MOST
        return ("down", EngineLoad()) if down else None


class EngineWatch:
    """Any number of processes may have one; the one that holds the lock reads. `step` never waits for an
    engine.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        timeout_ms: int,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._http = httpx.Client(
            timeout=timeout_ms / 1000, trust_env=False, follow_redirects=False,
            verify=checked_by(ca_file=ca_file),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )  # fmt: skip
        self._readers = ThreadPoolExecutor(_READERS_MOST, thread_name_prefix="engine-watch")
        self._write_entry = client.register_script(_script())
        self._watched: dict[str, WatchedEngine] = {}
        self._leadership = Leadership(client)
        self._closed = threading.Event()

    def step(self) -> bool:
        """A loop's step: begin a reading of every engine that is due and is not being read. Raises
        redis.RedisError.
        """
        entries: dict[bytes, bytes] = self._client.hgetall(redis_keys.INSTANCES)  # type: ignore[assignment]
        by_hand = {name.decode(): (raw, fields) for name, raw in entries.items() if (fields := _by_hand(raw))}
        if not by_hand or not self._leadership.hold(redis_keys.ENGINE_WATCH_LOCK):
            self._watched.clear()
            return False
        self._watched = {name: self._watched.get(name) or WatchedEngine() for name in by_hand}
        now = self._clock()
        for name, (raw, fields) in by_hand.items():
            watched = self._watched[name]
            if not watched.reading_now and now >= watched.not_before:
                watched.reading_now = True
                self._readers.submit(self._read, watched, name, raw, fields)
        return False

    def close(self) -> None:
        """End the readings that have begun, and let another process take over. If Redis cannot be reached,
        the lock lapses by itself.
        """
        self._closed.set()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        try:
            self._leadership.release_all()
        except redis.RedisError:
            _log.info("the lock of the engine watch lapses by itself")

    def _read(self, watched: WatchedEngine, name: str, raw: bytes, fields: dict[str, Any]) -> None:
        try:
            reading = read_engine(self._http, str(fields["url"]), fields.get("key"))
            if self._closed.is_set():
                return
            if isinstance(reading, NoCounters):
                watched.not_before = self._clock() + _UNCOUNTED_S
            if (shown := watched.take(reading)) is not None:
                changes = _load_fields(*shown)
                if isinstance(reading, Counters | NoCounters):
                    changes["metrics"] = isinstance(reading, Counters) or reading.page
                self._publish(name, raw, fields, changes, getattr(reading, "reason", ""))
        except redis.RedisError as exc:
            # The loop's own next call logs the error.
            _log.info("the load of %s is not shown: %s", name, type(exc).__name__)
        except Exception:
            _log.exception("instance %s cannot be looked at", name)
        finally:
            watched.reading_now = False

    def _publish(
        self, name: str, raw: bytes, fields: dict[str, Any], changes: dict[str, Any], reason: str
    ) -> None:
        """Publish what has changed. If the entry has changed meanwhile, the next reading publishes."""
        before, status = fields["status"], changes["status"]
        shown = fields | changes
        if shown == fields:
            return
        text = json.dumps(shown, separators=(",", ":"), ensure_ascii=False)
        if self._write_entry(keys=[redis_keys.INSTANCES], args=[name, raw, text]) and status != before:
            what = "answers again" if status == "ready" else f"does not answer ({reason})"
            _log.warning("instance %s %s: it is %s", name, what, status)


def _load_fields(status: str, load: EngineLoad) -> dict[str, Any]:
    """The fields of an entry for this status and load."""
    return {"status": status, "load": asdict(replace(load, kv_usage=round(load.kv_usage, _KV_DIGITS)))}


def _by_hand(raw: bytes) -> dict[str, Any] | None:
    """The fields of an entry that was added by hand and not removed. One that is starting or draining is not
    judged, and neither is a provider: it has no page of metrics, and the gateways see whether it answers.
    """
    try:
        fields = json.loads(raw)
        mine = fields["lease_until_ms"] == 0 and fields["status"] in {"ready", "down"} and fields["url"]
        mine = mine and not is_provider(fields.get("engine", VLLM))
    except (ValueError, KeyError, TypeError):
        return None
    return fields if mine else None


def _script() -> str:
    return (Path(__file__).parent / "lua" / "show_instance.lua").read_text(encoding="utf-8")
