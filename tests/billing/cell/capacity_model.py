"""What a cell does about classes, room and the line, in plain Python: the model that the scripts are held against. It knows no Redis."""

from collections.abc import Callable
from dataclasses import dataclass

INSTANCES = ("i-1", "i-2")


@dataclass(slots=True)
class Request:
    """One request. `cost_mu`: what it asks for; `charged_mu`: what it is charged now."""

    request_id: str
    tenant: str
    asked: str
    cost_mu: int
    sequences: int
    weight: int
    alive: bool
    state: str = ""
    class_: str = ""
    instance: str = ""
    spilled: bool = False
    charged_mu: int = 0
    output: int = 0
    lapsed: bool = False


class CellModel:
    """The cell. Which of several instances with as much room is taken, it asks (`instance_of`); all else it says itself."""

    def __init__(self, burst_mu: int, instance_of: Callable[[str], str]) -> None:
        self.burst_mu = burst_mu
        self._instance_of = instance_of
        self.room: dict[str, tuple[int, int]] = {}
        self.requests: dict[str, Request] = {}
        self.flight: dict[str, int] = {}
        self.virtual: dict[str, float] = {}
        self.last_left = 0.0
        self.used_mu = self.contract_used_mu = self.contract_level_mu = self.borrowed_mu = 0
        self._lines: dict[tuple[str, str], list[str]] = {}
        self._heard: list[str] = []

    def queue(self, class_: str, tenant: str) -> list[str]:
        return self._lines.setdefault((class_, tenant), [])

    def opened(self, tenant: str) -> int:
        return sum(each.tenant == tenant and each.state == "open" for each in self.requests.values())

    def heard(self) -> list[str]:
        """Whom the last step has woken."""
        heard, self._heard = self._heard, []
        return heard

    def waiting(self, class_: str) -> list[str]:
        """The tenants who wait, in their order."""
        return sorted((t for (c, t), ids in self._lines.items() if c == class_ and ids), key=self._turn)

    def _turn(self, tenant: str) -> tuple[float, str]:
        return self.virtual[tenant], tenant

    def _free(self, instance: str, class_: str) -> int:
        most, flex = self.room[instance]
        o, f = self.flight.get(f"o:{instance}", 0), self.flight.get(f"f:{instance}", 0)
        return min(most - o - f, flex - f) if class_ == "f" else most - o - f

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

    def _fly(self, request: Request, sequences: int) -> None:
        name = f"{request.class_}:{request.instance}"
        self.flight[name] = self.flight.get(name, 0) + sequences

    def move(self, request: Request, instance: str) -> None:
        if instance:
            self._fly(request, -request.sequences)
            request.instance = instance
            self._fly(request, request.sequences)

    def _drop(self, request: Request) -> None:
        if request.state == "waiting":
            self.queue(request.class_, request.tenant).remove(request.request_id)
        else:
            self._fly(request, -request.sequences)
            self.charge(request, 0)
        del self.requests[request.request_id]

    def grant_all(self, asking: str = "") -> None:
        while True:
            class_ = "o" if self.waiting("o") else "f"
            line = self.waiting(class_)
            if not line:
                return
            request = self.requests[self.queue(class_, line[0])[0]]
            if request.lapsed:
                self._drop(request)
                continue
            fitting = [name for name in INSTANCES if self._fits(name, class_, request.sequences)]
            if not fitting:
                return
            if not request.alive and request.request_id != asking:
                self._drop(request)
                continue
            taken = self._instance_of(request.request_id)
            assert taken in fitting
            assert self._free(taken, class_) == max(self._free(name, class_) for name in fitting)
            self.queue(class_, request.tenant).remove(request.request_id)
            self.last_left = max(self.last_left, self.virtual[request.tenant])
            request.state, request.instance = "granted", taken
            self._fly(request, request.sequences)
            self.charge(request, request.cost_mu)
            if request.request_id != asking:
                self._heard.append(request.request_id)

    def reserve(self, request: Request, wait_max: int, concurrency: int) -> str:
        """How it answers: settled, replayed, open, waiting, or the limit that refuses."""
        if request.state in ("settled", "open"):
            return "settled" if request.state == "settled" else "replayed"
        if 0 <= concurrency <= self.opened(request.tenant):
            if request.state:
                self._drop(request)
                self.grant_all()
            return "concurrency"
        if not request.state:
            self._classify(request)
            if not self._place_or_join(request, wait_max):
                return "room"
        elif request.state == "waiting":
            request.lapsed = False
            self.grant_all(request.request_id)
        if request.state == "waiting":
            return "waiting"
        request.state, request.lapsed = "open", False
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
        fitting = [name for name in INSTANCES if self._fits(name, class_, request.sequences)]
        if request.sequences == 0 or (fitting and not blocked):
            self.virtual[tenant] = lifted
            self.last_left = max(self.last_left, lifted)
            self._open(request, INSTANCES[0] if request.sequences == 0 else fitting[0])
            return True
        if len(self.queue(class_, tenant)) >= wait_max:
            return False
        self.virtual[tenant] = lifted
        self.queue(class_, tenant).append(request.request_id)
        request.state = "waiting"
        self.requests[request.request_id] = request
        self.grant_all(request.request_id)
        return True

    def _open(self, request: Request, instance: str) -> None:
        request.state, request.instance = "open", instance
        self.requests[request.request_id] = request
        self._fly(request, request.sequences)
        self.charge(request, request.cost_mu)

    def settle(self, request_id: str, cost_mu: int) -> None:
        request = self.requests.get(request_id)
        if request is not None and request.state == "open":
            self.charge(request, cost_mu)
            self._fly(request, -request.sequences)
            self.grant_all()
        elif request is not None:
            self._drop(request)
            self.grant_all()
        ended = request or Request(request_id, "", "", 0, 0, 1, alive=True)
        ended.state = "settled"
        self.requests[request_id] = ended

    def leave(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        if request is None or request.state not in ("waiting", "granted"):
            return False
        self._drop(request)
        self.grant_all()
        return True
