"""The statuses of a batch, as OpenAI names them. Pure."""

from typing import Final

OPEN_STATUSES: Final = ("validating", "in_progress", "finalizing", "cancelling")
STATUSES: Final = (*OPEN_STATUSES, "completed", "failed", "expired", "cancelled")
