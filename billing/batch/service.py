"""What the routes of a batch process work with."""

from dataclasses import dataclass

from sqlalchemy import Engine

from billing.batch.metrics import BatchMetrics
from billing.batch.objects import Objects
from billing.batch.settings import BatchSettings


@dataclass(frozen=True, slots=True)
class Service:
    """One per process."""

    engine: Engine
    objects: Objects
    settings: BatchSettings
    metrics: BatchMetrics
