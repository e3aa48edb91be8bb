"""The route that tells Prometheus what to scrape, in the form of its HTTP service discovery."""

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter

from billing.api.capacity_answers import ScrapeTarget
from billing.api.control import Control
from billing.api.query import KNOWN_QUERY
from billing.fleet.registered import read_registered
from billing.wire.instance_entry import InstanceEntry
from billing.wire.scrape_targets import read_targets

router = APIRouter(prefix="/admin/v1/scrape-targets", tags=["metrics"], dependencies=[KNOWN_QUERY])

# An engine that is starting, or down, has no page to show.
_RUNNING: Final = frozenset({"ready", "draining"})
_PORTS: Final = {"http": 80, "https": 443}


@router.get("", response_model=list[ScrapeTarget])
def list_all(control: Control) -> list[dict[str, Any]]:
    """Every gateway, billing process, worker and engine that runs now, each with its `job`; engines with
    their id, model and pool. For `http_sd_configs` of Prometheus, which needs a bare list.
    """
    pages = [_group(target.address, {"job": target.job}) for target in read_targets(control.redis)]
    return [*pages, *_engines(read_registered(control.redis))]


def _engines(entries: list[InstanceEntry]) -> Iterator[dict[str, Any]]:
    """A server with several ids is one target, under the first id: its page would be counted twice."""
    seen = set()
    for entry in entries:
        url = entry.url.rstrip("/").removesuffix("/v1")
        if entry.status in _RUNNING and entry.has_metrics and url not in seen:
            seen.add(url)
            yield _engine(entry, url)


def _engine(entry: InstanceEntry, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    address = parts.netloc if parts.port is not None else f"{parts.netloc}:{_PORTS[parts.scheme]}"
    labels = {"job": "engine", "engine": entry.instance, "model": entry.model, "pool": entry.pool}
    if parts.scheme != "http":
        labels["__scheme__"] = parts.scheme
    if parts.path:
        labels["__metrics_path__"] = f"{parts.path}/metrics"
    return _group(address, labels)


def _group(address: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"targets": [address], "labels": labels}
