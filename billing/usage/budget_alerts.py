"""Sends the alerts of budgets: a POST of JSON, signed as the Standard Webhooks specification has it
(https://www.standardwebhooks.com). Each is sent once for a period and a limit, until somebody takes it.
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
from sqlalchemy import Engine

from billing.catalogue import budget_alerts
from billing.catalogue.budget_alerts import Alert
from billing.catalogue.budgets import Budget
from billing.outgoing import Outgoing
from billing.schema.clock import database_now_ms
from billing.wire.webhooks import retry_after_ms, signed_headers

_log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 5.0
# Receivers that do not answer hold up no others for long.
_AT_ONCE: Final = 16


class AlertSender:
    """Sends what is due. `verify`: whose certificates it trusts, as httpx takes it."""

    def __init__(
        self,
        engine: Engine,
        *,
        verify: Any,
        timeout_s: float = _TIMEOUT_S,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._engine = engine
        self._now_ms = now_ms
        self._outgoing = Outgoing(verify=verify, timeout_s=timeout_s)

    def round(self) -> None:
        """Try each alert that is due once. Raises SQLAlchemyError."""
        with self._engine.connect() as connection:
            now_ms = database_now_ms(connection) if self._now_ms is None else self._now_ms()
            due = budget_alerts.due(connection, now_ms)
        if not due:
            return
        with ThreadPoolExecutor(min(len(due), _AT_ONCE), "alerts") as pool:
            failures = list(pool.map(lambda each: self._send(each[0], each[1], now_ms), due))
        for (alert, budget), failure in zip(due, failures, strict=True):
            with self._engine.begin() as connection:
                if failure is None:
                    budget_alerts.sent(connection, alert, budget.from_ms)
                else:
                    _log.warning("an alert of %s was not taken: %s", alert.budget_id, failure)
                    next_ms = now_ms + retry_after_ms(alert.attempts)
                    budget_alerts.failed(connection, alert, failure, next_ms)

    def close(self) -> None:
        """Close its connections."""
        self._outgoing.close()

    def _send(self, alert: Alert, budget: Budget, now_ms: int) -> str | None:
        """Returns why it was not taken, None if it was."""
        body = json.dumps(content(alert, budget, now_ms)).encode()
        alert_id = f"{alert.budget_id}-{alert.percent}-{budget.from_ms}-{budget.limit.picousd}"
        headers = {
            "content-type": "application/json",
            **signed_headers(alert.secret, alert_id, now_ms // 1000, body),
        }
        try:
            answer = self._outgoing.post(alert.url, body, headers)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return type(exc).__name__
        return None if answer.is_success else f"status {answer.status}"


def content(alert: Alert, budget: Budget, now_ms: int) -> dict[str, Any]:
    """What is sent. Amounts in USD are exact decimal strings."""
    return {
        "type": "budget.spent",
        "percent": alert.percent,
        "budget": budget.budget_id,
        "tenant": budget.tenant_id,
        "project": budget.project_id,
        "key_id": budget.key_id,
        "per": budget.per.value,
        "usd": str(budget.limit),
        "spent": str(budget.spent),
        "left": str(budget.limit - budget.spent),
        "from_ms": budget.from_ms,
        "until_ms": budget.until_ms,
        "runs_out_ms": budget.runs_out_ms(now_ms),
        "at_ms": now_ms,
    }
