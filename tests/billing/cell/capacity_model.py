"""What a cell does about classes, room, the queue and preemption, in plain Python: the model that the scripts
are held against. It knows no Redis.

Time stands still but where a step says otherwise (`read_on`, `drained_cancels`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

INSTANCES = ("i-1", "i-2")
# Flex that cannot be resumed elsewhere comes after all that can.
CANNOT_RESUME = 1e15


@dataclass(slots=True, kw_only=True)
class Request:
    """One request. `cost_mu`: what it asks for; `charged_mu`: what it is charged now. An open one without
    an instance has given its place up.
    """

    request_id: str
    tenant: str
    asked: str
    cost_mu: int
    sequences: int
    weight: int
    gateway: str
    can_resume: bool = False
    resumed: bool = False
    prompt_mu: int = 0
    state: str = ""
    class_: str = ""
    instance: str = ""
    spilled: bool = False
    charged_mu: int = 0
    output: int = 0
    lapsed: bool = False
    rounds_asked: int = 0

    @property
    def paused(self) -> bool:
        return self.state == "open" and not self.instance


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Requests open, cancelled a minute, and work a minute; -1: no limit."""

    concurrency: int = -1
    cancels: int = -1
    units_mu: int = -1


class CellModel:
    """The cell. Which of several instances with as much room is taken, it asks (`instance_of`); all else
    it says itself.
    """

    def __init__(
        self, burst_mu: int, limits: dict[str, TenantLimits], instance_of: Callable[[str], str]
    ) -> None:
        self.burst_mu = burst_mu
        self.limits = limits
        self._instance_of = instance_of
        self.listening: set[str] = set()
        self.room: dict[str, tuple[int, int]] = {}
        # mu a second at which an instance reads; what it had to read at the last start, and for how many
        # seconds it has read since.
        self.reads_mu_s = dict.fromkeys(INSTANCES, 0)
        self.prompts_mu: dict[str, tuple[int, int]] = {}
        # Until the next prompt may start, of what the last step looked at; 0: it was held up by none.
        self.pace_s = 0.0
        # By instance the flex requests that may be preempted, and their turn.
        self.lent: dict[str, dict[str, float]] = {name: {} for name in INSTANCES}
        self.cancels = dict.fromkeys(limits, 0)
        self.requests: dict[str, Request] = {}
        self.flight: dict[str, int] = {}
        self.virtual: dict[str, float] = {}
        self.last_left = 0.0
        # What the minute's limit on work counts: all but what is reserved.
        self.units_mu = dict.fromkeys(limits, 0)
        # Tenants of whom something was admitted.
        self.with_bucket: set[str] = set()
        # Requests that the contract had room for, by the limit that refused them.
        self.limited = {"concurrency": 0, "units": 0, "cancels": 0}
        self.used_mu = self.contract_used_mu = self.contract_level_mu = self.borrowed_mu = 0
        self._lines: dict[tuple[str, str], list[str]] = {}
        self._heard: list[str] = []

    def queue(self, class_: str, tenant: str) -> list[str]:
        return self._lines.setdefault((class_, tenant), [])

    def opened(self, tenant: str) -> int:
        return sum(
            each.tenant == tenant and each.state == "open" and not each.paused
            for each in self.requests.values()
        )

    def charged_so_far_mu(self) -> int:
        """To what has not ended."""
        return sum(each.charged_mu for each in self.requests.values() if each.state in ("open", "granted"))

    def heard(self) -> list[str]:
        """Whom the last step has woken."""
        heard, self._heard = self._heard, []
        return heard

    def waiting(self, class_: str) -> list[str]:
        """The tenants who wait, in their order."""
        return sorted((t for (c, t), ids in self._lines.items() if c == class_ and ids), key=self._turn)

    def _turn(self, tenant: str) -> tuple[float, str]:
        return self.virtual[tenant], tenant

    def unread_mu(self, instance: str) -> int:
        """Of prompts there."""
        began_mu, read_s = self.prompts_mu.get(instance, (0, 0))
        return max(0, began_mu - self.reads_mu_s[instance] * read_s)

    def _start_reading(self, request: Request) -> None:
        if self.reads_mu_s[request.instance]:
            self.prompts_mu[request.instance] = self.unread_mu(request.instance) + request.prompt_mu, 0

    def read_on(self, instance: str, seconds: int) -> None:
        """So much time has passed for what reads there."""
        if instance in self.prompts_mu:
            began_mu, read_s = self.prompts_mu[instance]
            self.prompts_mu[instance] = began_mu, read_s + seconds

    def _free(self, instance: str, class_: str) -> int:
        most, flex = self.room[instance]
        o, f = self.flight.get(f"o:{instance}", 0), self.flight.get(f"f:{instance}", 0)
        free = min(most - o - f, flex - f) if class_ == "f" else most - o - f
        rate = self.reads_mu_s[instance]
        if free > 0 and rate and self.unread_mu(instance):
            wait_s = self.unread_mu(instance) / rate
            self.pace_s = min(self.pace_s or wait_s, wait_s)
            return 0
        return free

    def _fits(self, instance: str, class_: str, sequences: int) -> bool:
        free = self._free(instance, class_)
        idle = not self.flight.get(f"o:{instance}", 0) and not self.flight.get(f"f:{instance}", 0)
        return free >= sequences or (idle and free > 0)

    def charge(self, request: Request, to_mu: int) -> None:
        difference, request.charged_mu = to_mu - request.charged_mu, to_mu
        self.used_mu += difference
        if request.class_ == "r":
            self.contract_used_mu += difference
            self.contract_level_mu = max(0, self.contract_level_mu + difference)
            return
        if request.spilled:
            self.borrowed_mu += difference
        self.virtual[request.tenant] += difference / request.weight

    def use(self, request: Request, to_mu: int) -> None:
        """An open request has used this much in all."""
        self._count_units(request, to_mu - request.charged_mu)
        self.charge(request, to_mu)

    def _count_units(self, request: Request, more_mu: int) -> None:
        if request.class_ != "r" and self.limits[request.tenant].units_mu >= 0:
            self.units_mu[request.tenant] = max(0, self.units_mu[request.tenant] + more_mu)

    def _fly(self, request: Request, sequences: int) -> None:
        name = f"{request.class_}:{request.instance}"
        self.flight[name] = self.flight.get(name, 0) + sequences

    def _land(self, request: Request) -> float | None:
        """Its place is free; its turn to be preempted."""
        self._fly(request, -request.sequences)
        return self.lent[request.instance].pop(request.request_id, None)

    def move(self, request: Request, instance: str) -> None:
        if instance and not request.paused:
            turn = self._land(request)
            request.instance = instance
            self._fly(request, request.sequences)
            if turn is not None:
                self.lent[instance][request.request_id] = turn

    def pause(self, request: Request) -> None:
        """It gives its place up, and is none of those that its tenant has open."""
        if not request.paused:
            self._land(request)
            request.instance = ""
            self.grant_all()

    def plan(self, preempt: dict[str, int]) -> None:
        """New figures are written: grants are published again or dropped, `preempt` says how many requests of
        each instance are preempted, and free slots are granted.
        """
        for request in [each for each in self.requests.values() if each.state == "granted"]:
            if request.gateway in self.listening:
                self._heard.append(request.request_id)
            else:
                self._drop(request)
        for instance, count in preempt.items():
            lent, going = self.lent[instance], 0
            for request_id in sorted(lent, key=lambda name: (lent[name], name)):
                going += self._ask(self.requests[request_id])
                if going == count:
                    break
        self.grant_all()

    def _ask(self, request: Request) -> bool:
        """Ask a request to stop, and again in every third round. False where nobody listens; that one is
        asked in the next round.
        """
        request.rounds_asked += 1
        if request.rounds_asked % 3 == 1:
            if request.gateway not in self.listening:
                request.rounds_asked = 0
                return False
            self._heard.append(f"!{request.request_id}")
        return True

    def _drop(self, request: Request) -> None:
        if request.state == "waiting":
            self.queue(request.class_, request.tenant).remove(request.request_id)
        else:
            self._fly(request, -request.sequences)
            self.charge(request, 0)
        del self.requests[request.request_id]

    def grant_all(self, asking: str = "") -> None:
        for class_ in "of":
            while line := self.waiting(class_):
                request = self.requests[self.queue(class_, line[0])[0]]
                if not self._grant(request, asking):
                    break

    def _grant(self, request: Request, asking: str) -> bool:
        """Whether the first in the queue is no longer in it: it has a place, or nobody hears that it has
        one.
        """
        # Nothing is kept from on-demand here, and so flex has nothing while it waits.
        if request.class_ == "f" and self.waiting("o"):
            return False
        fitting = [name for name in INSTANCES if self._fits(name, request.class_, request.sequences)]
        if not fitting:
            return False
        if request.gateway not in self.listening and request.request_id != asking:
            self._drop(request)
            return True
        taken = self._instance_of(request.request_id)
        assert taken in fitting
        assert self._free(taken, request.class_) == max(self._free(name, request.class_) for name in fitting)
        self.queue(request.class_, request.tenant).remove(request.request_id)
        self.last_left = max(self.last_left, self.virtual[request.tenant])
        # Whatever became of the lease by which it waited: it has a new one.
        request.state, request.instance, request.lapsed = "granted", taken, False
        self._fly(request, request.sequences)
        self._start_reading(request)
        self.charge(request, request.cost_mu)
        if request.request_id != asking:
            self._heard.append(request.request_id)
        return True

    def _refusing(self, request: Request, cancels: int) -> str:
        limits = self.limits[request.tenant]
        if request.resumed:
            return ""
        # Of several that refuse, the one that takes longest to clear is told.
        if 0 <= limits.cancels < cancels + 1:
            return "cancels"
        wait_ms = {"concurrency": 1_000} if 0 <= limits.concurrency <= self.opened(request.tenant) else {}
        over_mu = self.units_mu[request.tenant] + request.cost_mu - limits.units_mu
        if limits.units_mu >= 0 and over_mu > 0 and request.class_ != "r":
            wait_ms["units"] = math.ceil(over_mu * 60_000 / limits.units_mu)
        return max(wait_ms, key=lambda limit: (wait_ms[limit], limit), default="")

    def reserve(self, request: Request, wait_max: int, now_ms: int, drained_cancels: int = 0) -> str:
        """How it answers: settled, replayed, open, waiting, or the limit that refuses. `drained_cancels`:
        as much time has passed for its tenant.
        """
        if request.state in ("settled", "open"):
            return "settled" if request.state == "settled" else "replayed"
        cancels = max(0, self.cancels[request.tenant] - drained_cancels)
        if not request.state:
            self._classify(request)
        refusing = self._refusing(request, cancels)
        if refusing:
            self.limited[refusing] += request.class_ == "r"
            if request.state:
                self._drop(request)
                self.grant_all()
            return refusing
        if not request.state:
            if not self._place_or_join(request, wait_max):
                return "room"
        elif request.state == "waiting":
            request.lapsed = False
            self._free(INSTANCES[0], request.class_)
            self.grant_all(request.request_id)
        if request.state == "waiting":
            return "waiting"
        request.state, request.lapsed = "open", False
        self.with_bucket.add(request.tenant)
        self._count_units(request, request.cost_mu)
        self.cancels[request.tenant] = cancels
        if request.class_ == "f":
            self.lent[request.instance][request.request_id] = (
                0 if request.can_resume else CANNOT_RESUME
            ) - now_ms
        return "open"

    def _classify(self, request: Request) -> None:
        request.spilled = False
        if request.tenant == "c" and request.asked == "auto":
            request.spilled = self.contract_level_mu >= self.burst_mu
            request.class_ = "o" if request.spilled else "r"
        else:
            request.class_ = "f" if request.asked == "flex" else "o"

    def _place_or_join(self, request: Request, wait_max: int) -> bool:
        class_, tenant = request.class_, request.tenant
        if class_ == "r":
            self._open(request, INSTANCES[0])
            return True
        line = self.waiting(class_)
        blocked = bool(self.waiting("o") or line)
        least = self.virtual[tenant if tenant in line else line[0]] if line else self.last_left
        lifted = max(self.virtual.get(tenant, 0.0), least)
        place = self._place(request, blocked=blocked)
        if place:
            self.virtual[tenant] = lifted
            self.last_left = max(self.last_left, lifted)
            self._open(request, place)
            return True
        if len(self.queue(class_, tenant)) >= wait_max:
            return False
        self.virtual[tenant] = lifted
        self.queue(class_, tenant).append(request.request_id)
        request.state = "waiting"
        self.requests[request.request_id] = request
        self.grant_all(request.request_id)
        return True

    def _place(self, request: Request, *, blocked: bool) -> str:
        """The first candidate where it may start at once."""
        if request.sequences == 0:
            return INSTANCES[0]
        if blocked:
            self._free(INSTANCES[0], request.class_)
            return ""
        return next((name for name in INSTANCES if self._fits(name, request.class_, request.sequences)), "")

    def _open(self, request: Request, instance: str) -> None:
        request.state, request.instance = "open", instance
        self.requests[request.request_id] = request
        self._fly(request, request.sequences)
        self._start_reading(request)
        self.charge(request, request.cost_mu)

    def _settle_orphan(self, tenant: str, cost_mu: int) -> None:
        """It has no place and no counter; its event says on-demand, and what it used counts where its
        tenant has a bucket.
        """
        if tenant in self.with_bucket and self.limits[tenant].units_mu >= 0:
            self.units_mu[tenant] += cost_mu

    def settle(self, request_id: str, cost_mu: int, tenant: str, *, cancelled: bool = False) -> None:
        request = self.requests.get(request_id)
        if request is not None and request.state == "open":
            self.use(request, cost_mu)
            if not request.paused:
                self.cancels[request.tenant] += cancelled and self.limits[request.tenant].cancels >= 0
                self._land(request)
                self.grant_all()
        else:
            self._settle_orphan(tenant, cost_mu)
            if request is not None:
                self._drop(request)
                self.grant_all()
        ended = request or Request(
            request_id=request_id, tenant="", asked="", cost_mu=0, sequences=0, weight=1, gateway=""
        )
        ended.state = "settled"
        self.requests[request_id] = ended

    def leave(self, request_id: str, *, withdrawn: bool = False) -> bool:
        request = self.requests.get(request_id)
        if request is not None and request.state == "open" and withdrawn:
            self.use(request, 0)
            del self.requests[request_id]
            if not request.paused:
                self._land(request)
                self.grant_all()
            return True
        if request is None or request.state not in ("waiting", "granted"):
            return False
        self._drop(request)
        self.grant_all()
        return True
