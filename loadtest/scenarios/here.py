"""The guarantee on what runs already (`make up`, then `taas calibrate`): its gateway, its engines, its
calibration. For real engines.

Its tenants and its contract are made anew by the admin API, and the contract is given notice at the end.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any

import httpx

from loadtest.children import DidNotStart
from loadtest.scenarios.arrivals import Shape, prompt
from loadtest.scenarios.client import Targets
from loadtest.settings import read_admin, read_target

_TERM = timedelta(hours=2)
_SETTLE_S = 2.5
_PROMPTS_COUNTED = 20


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """What a calibration found of an instance."""

    weights: dict[str, int]
    capacity_units_s: float

    def units(self, input_tokens: float, output_tokens: float) -> float:
        """What a request costs."""
        return (self.weights["w_in_mu"] * input_tokens + self.weights["w_out_mu"] * output_tokens) / 1000


@dataclass(slots=True, kw_only=True)
class Here:
    """A running installation, as callers and as its operator see it."""

    admin: httpx.Client
    base_url: str
    model: str
    keys: dict[str, str] = field(default_factory=dict)
    tenants: dict[str, str] = field(default_factory=dict)
    pool: str = ""
    contracts: list[str] = field(default_factory=list)

    @property
    def targets(self) -> Targets:
        """Where callers send their requests."""
        # Schedules name two gateways; here both are the one that runs.
        return Targets([self.base_url, self.base_url], dict(self.keys), self.model)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The admin API. Raises DidNotStart with what it said."""
        answer = self.admin.request(method, f"/admin/v1/{path}", json=body)
        if answer.status_code >= 300:
            raise DidNotStart(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    def speed(self) -> MeasuredSpeed:
        """By the newest calibration of the model's pool. Raises DidNotStart where there is none."""
        self.pool = next(
            each["pool"] for each in self.ask("GET", "models")["data"] if each["name"] == self.model
        )
        found = [each for each in self.ask("GET", "calibrations")["data"] if each["pool"] == self.pool]
        if not found:
            raise DidNotStart(f"pool {self.pool} has no calibration: taas calibrate {self.pool}")
        machines = int(self.ask("GET", f"pools/{self.pool}")["instances"])
        return MeasuredSpeed(found[0]["weights"], float(found[0]["capacity_units_per_second"]) * machines)

    def add_tenant(self, name: str) -> None:
        """A tenant with a key and no limits, under a name that no run before it had."""
        self.tenants[name] = self.ask("POST", "tenants", {"name": f"{name}-{token_hex(3)}"})["tenant"]
        self.keys[name] = self.ask("POST", "keys", {"tenant": self.tenants[name]})["key"]

    def sign(self, name: str, units_s: float) -> None:
        """A contract that the allocator has told the cell of when this returns."""
        until = (datetime.now(UTC) + _TERM).isoformat(timespec="seconds").replace("+00:00", "Z")
        terms = {
            "tenant": self.tenants[name], "pool": self.pool, "units": str(round(units_s, 3)), "until": until,
            "notice_days": 0, "overflow": "reject",
        }  # fmt: skip
        self.contracts.append(self.ask("POST", "contracts", terms)["contract"])
        time.sleep(_SETTLE_S)

    def tokens_of(self, name: str, shape: Shape) -> float:
        """How long the engine finds the prompts of a shape, on average. Raises DidNotStart where it does
        not say.
        """
        headers = {"authorization": f"Bearer {self.keys[name]}"}
        counts = []
        for number in range(_PROMPTS_COUNTED):
            message = {"role": "user", "content": prompt(shape.input_tokens, number)}
            answer = httpx.post(
                f"{self.base_url.removesuffix('/v1')}/tokenize", json={"model": self.model,
                "messages": [message]}, headers=headers,
                timeout=30, trust_env=False,
            )  # fmt: skip
            if answer.status_code != 200:
                raise DidNotStart(f"/tokenize: {answer.status_code} {answer.text[:300]}")
            counts.append(int(answer.json()["count"]))
        return sum(counts) / len(counts)

    def end(self) -> None:
        """Give up what was signed; nothing of it was to outlive the run."""
        for contract in self.contracts:
            self.ask("POST", f"contracts/{contract}/notice", {"by": "operator"})


@contextmanager
def here() -> Iterator[Here]:
    """What the environment or `demo.env` names. Raises DidNotStart where nothing is named."""
    target, admin = read_target(), read_admin()
    if not (target.base_url and target.model and admin.url):
        raise DidNotStart("nothing runs here: make up")
    headers = {"authorization": f"Bearer {admin.key.get_secret_value()}"}
    with httpx.Client(base_url=admin.url, headers=headers, timeout=30, trust_env=False) as client:
        found = Here(admin=client, base_url=target.base_url, model=target.model)
        try:
            yield found
        finally:
            found.end()
