"""What the routes of a batch process work with."""

from dataclasses import dataclass

from sqlalchemy import Engine

from batch.metrics import BatchMetrics
from batch.objects import Objects
from batch.settings import BatchSettings


@dataclass(frozen=True, slots=True)
class Service:
    """One per process."""

    engine: Engine
    objects: Objects
    settings: BatchSettings
    metrics: BatchMetrics
