"""What a gateway needs of an engine, whichever engine that is. An adapter is one module that implements
`EngineAdapter`.

`gateway.upstream.adapters` chooses one by the instance. An adapter does no I/O: it makes requests and reads
answers.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from billing.wire.instance_entry import InstanceEntry
from billing.wire.usage_event import CapacityClass
from gateway.errors import GatewayError
from gateway.request import ParsedRequest, RouteSpec
from gateway.stream.meter import Meter


class EngineCall(NamedTuple):
    """A POST. `headers` are complete lines, each with its line end; the connection adds address, key and
    length.
    """

    path: bytes
    headers: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCount:
    """The tokens of one request by the engine's counters: the prompt counts once for each sample that has
    produced a token. `finished`: it produces no more. `known`: the engine remembers it. `since`: when the
    answering process started, by our monotonic clock.
    """

    finished: bool
    known: bool
    prompt: int
    cached: int
    output: int
    since: float


class EngineAdapter(Protocol):
    """Implemented by modules. `CONTINUES_TEXT`: the engine goes on from a text that it is given, so that a
    stream can be resumed there (`gateway.stream.continuation`).
    """

    CONTINUES_TEXT: bool

    def request(
        self,
        parsed: ParsedRequest,
        instance: InstanceEntry,
        *,
        request_id: str,
        engine_model: str,
        cache_salt: str,
        default_max_tokens: int | None,
        class_: CapacityClass,
        cached_prompt: bytes | None,
    ) -> EngineCall:
        """One attempt, as this instance takes it. `engine_model`: the engine's name for its model.
        `cache_salt`: the tenant's, in hex. `cached_prompt`: for an engine that tells of its cache
        (`billing.wire.cached_prompt`). Raises UnsupportedParameter for a parameter that engines of this kind
        do not know.
        """

    def abort(self, parsed: ParsedRequest, request_id: str) -> EngineCall:
        """Aborts a request, whose answer then ends with its usage; only for an instance with `abort`."""

    def count(self, request_id: str) -> EngineCall:
        """Asks what a request has produced; only for an instance with `counts`."""

    def read_count(self, answer: bytes, request_id: str) -> RequestCount | None:
        """Reads the answer to `count`; None if it cannot be trusted."""

    def meter(self, parsed: ParsedRequest, tier: bytes | None) -> Meter:
        """A new meter for the answer to one attempt. `tier`: the class that serves it, if that is known
        already.
        """

    def refusal(self, status: int, body: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
        """The error that a caller on `route` gets for an answer with this status, not 200. It never raises,
        and names nothing of the engine.
        """

    def failure(self, event: bytes, route: RouteSpec, engine_model: str) -> GatewayError:
        """The same for an error with which a stream ended before it had produced anything."""
