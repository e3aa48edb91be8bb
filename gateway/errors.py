"""What goes wrong with a request, each kind with its status, reason code and whether a retry can help.
`gateway.error_form` writes it out.

    GatewayError
    ├── InternalError                     500 internal_error: a bug of ours
    ├── InvalidRequest                    400 invalid_value, invalid_type, missing_required_parameter …
    │   ├── InvalidJson                   400 invalid_json
    │   ├── UnsupportedParameter          400 unsupported_parameter
    │   ├── RemoteMediaDisabled           400 remote_media_disabled
    │   ├── ContextLengthExceeded         400 context_length_exceeded
    │   ├── NoContractHere                400 no_contract
    │   ├── IdempotencyKeyReused          422 idempotency_key_reused
    │   └── EngineRefused                 400 engine_refused: the engine found what we did not
    ├── IdempotencyConflict               409 idempotency_key_in_use: the first request runs
    │   ├── AlreadyDone                   409 idempotency_request_done, with its receipt
    │   └── OutcomeUnknown                409 idempotency_outcome_unknown
    ├── BodyTooLarge                      413 body_too_large, closes
    ├── UnsupportedContentEncoding        415 unsupported_content_encoding
    ├── RequestTimeout                    408 request_timeout, closes
    ├── AuthenticationFailed              401 invalid_api_key: one body for every reason
    ├── ClientDisconnected                        499: nobody reads it
    ├── PermissionDenied                  403 permission_denied
    ├── ModelNotFound                     404 model_not_found: one body for "unknown" and "not yours"
    │   └── ModelRouteUnsupported         404 model_route_unsupported: theirs, but not served on this route
    ├── RouteNotFound                     404 route_not_found
    ├── MethodNotAllowed                  405 method_not_allowed
    ├── QuotaExceeded                     429 rate_limit_exceeded
    │   └── BudgetUsedUp                  429 insufficient_quota
    ├── TryLater                          503
    │   ├── Overloaded                    503 overloaded
    │   ├── ReceivingFull                 503 receiving_full
    │   ├── NoInstance                    503 no_instance
    │   │   └── InstancesBusy             503 overloaded: all of them have said so
    │   ├── DependencyUnavailable         503 dependency_unavailable
    │   ├── UsageUnavailable              503 usage_unavailable
    │   ├── BatchUnavailable              503 batch_unavailable
    │   └── RequestQuarantined            503 request_quarantined: two engines died with it
    ├── UpstreamProtocolError             502 upstream_protocol_error
    ├── EngineFailed                      502 engine_failed
    ├── RequestStopped                    503 operator_stop, tenant_suspended …: by its ending
    └── DeadlineExceeded                  504 deadline_exceeded

Messages may name parameters, limits and numbers; never a prompt, a key, a host or a path. They are for the
caller, not for logs: log `code`. Statuses that SDKs retry by themselves: 408, 409, 429 and ≥ 500.
"""

from datetime import UTC, datetime
from typing import Any

from billing.wire.ending import Ending
from gateway.request import Route

# SDKs wait at most this long; a longer time would only lead to three requests instead of one.
RETRY_AFTER_MS_MAX = 120_000
NAME_CHARS_MAX = 256
IDEMPOTENCY_KEY = "Idempotency-Key"
# Of the endings with which we stop a request.
_RETRY_HELPS = frozenset({Ending.GATEWAY_STOPPED, Ending.PREEMPTED})


class GatewayError(Exception):
    """The root: what every kind carries. Raise one of the kinds."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    anthropic_type: str = "api_error"
    param: str | None = None
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    close: bool = False
    receipt: dict[str, Any] | None = None
    text: str = "The server had an error while processing your request."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.text)
        self.message = message or self.text


class InternalError(GatewayError):
    """The error that a caller gets for a bug of ours."""


class InvalidRequest(GatewayError):
    """The body contains something that this route does not take. `param`: the path of the member at fault, as
    in `messages[0].role`.
    """

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    anthropic_type = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class InvalidJson(InvalidRequest):
    """The body is not one JSON object that every parser reads alike."""

    code = "invalid_json"


class UnsupportedParameter(InvalidRequest):
    """A parameter, or a value of it, that is not in this route's allow-list."""

    code = "unsupported_parameter"

    def __init__(self, param: str, reason: str = "") -> None:
        super().__init__(f"Unsupported parameter: '{param}'.{' ' if reason else ''}{reason}", param)


class RemoteMediaDisabled(InvalidRequest):
    """Media by URL. The product never fetches a caller's URL."""

    code = "remote_media_disabled"

    def __init__(self, param: str) -> None:
        super().__init__(
            f"'{param}' must be inline base64 data: media is not fetched from URLs or file ids.", param
        )


class IdempotencyKeyReused(InvalidRequest):
    """The first request under this key had another body or another route."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key came with another request before. A key belongs to one request: take a new "
            "one.",
            IDEMPOTENCY_KEY,
        )


class ContextLengthExceeded(InvalidRequest):
    """More tokens than the model's context holds; the message names both numbers. `counted` names what
    `requested` counts; `at_least`: counting stopped before the end.
    """

    code = "context_length_exceeded"

    def __init__(
        self,
        context_tokens: int,
        requested: int,
        param: str,
        counted: str = "tokens",
        *,
        at_least: bool = False,
    ) -> None:
        asked = f"{'at least ' if at_least else ''}{requested} {counted}"
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens. However, you requested "
            f"{asked}.",
            param,
        )
        self.context_tokens = context_tokens
        self.requested = requested


class NoContractHere(InvalidRequest):
    """The caller asked for reserved capacity, and its tenant has no contract for this model."""

    code = "no_contract"

    def __init__(self) -> None:
        super().__init__("This account has no reserved capacity for this model now.", "service_tier")


class EngineRefused(InvalidRequest):
    """A 4xx of the engine, cleaned up. Not retried: another engine would answer the same."""

    code = "engine_refused"


class IdempotencyConflict(GatewayError):
    """The request was not carried out, because another one came under its Idempotency-Key before."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_key_in_use"
    anthropic_type = "invalid_request_error"
    param = IDEMPOTENCY_KEY
    text = "The first request with this Idempotency-Key still runs. Send it again in a moment."


class AlreadyDone(IdempotencyConflict):
    """The first request has ended. `receipt`: what it used and costs, as far as it is known."""

    code = "idempotency_request_done"
    should_retry = False
    text = (
        "The request with this Idempotency-Key has been carried out, and its answer was not stored. Here is "
        "its receipt; to have another answer, take a new key."
    )

    def __init__(self, receipt: dict[str, Any]) -> None:
        super().__init__()
        self.receipt = receipt


class OutcomeUnknown(IdempotencyConflict):
    """Nothing is known of the first request: its gateway has died before it was admitted, or Redis has lost
    it.
    """

    code = "idempotency_outcome_unknown"
    should_retry = False

    def __init__(self, first_request_id: str) -> None:
        super().__init__(
            f"Nothing is known of the first request with this Idempotency-Key, {first_request_id}, and so "
            "far nothing was billed for it. To have it carried out, take a new key."
        )


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"
    anthropic_type = "request_too_large"
    close = True

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.")


class UnsupportedContentEncoding(GatewayError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"
    anthropic_type = "invalid_request_error"
    text = "Compressed request bodies are not accepted: send the body without Content-Encoding."


class RequestTimeout(GatewayError):
    """The body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    anthropic_type = "timeout_error"
    close = True
    text = "The request body did not arrive in time."


class AuthenticationFailed(GatewayError):
    """Always the same body, so that it does not tell a missing key from a revoked one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    anthropic_type = "authentication_error"
    text = "Incorrect API key provided."


class ClientDisconnected(GatewayError):
    """The client disconnected before it had an answer. Nobody reads this."""

    status = 499
    code = Ending.CLIENT_DISCONNECT.value


class PermissionDenied(GatewayError):
    status = 403
    type = "permission_error"
    code = "permission_denied"
    anthropic_type = "permission_error"
    text = "This API key may not do this."


class ModelNotFound(GatewayError):
    """One body for "unknown" and "not yours"."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    anthropic_type = "not_found_error"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{_quotable(model)}' does not exist or you do not have access to it.")


class ModelRouteUnsupported(ModelNotFound):
    """Only for a model that the caller may see."""

    code = "model_route_unsupported"

    def __init__(self, model: str, route: Route) -> None:
        GatewayError.__init__(
            self, f"The model '{_quotable(model)}' is not served on the {route.value} route."
        )


class RouteNotFound(GatewayError):
    status = 404
    type = "invalid_request_error"
    code = "route_not_found"
    anthropic_type = "not_found_error"
    text = "There is no such route."


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    anthropic_type = "invalid_request_error"

    def __init__(self, allow: str) -> None:
        super().__init__(f"This route takes {allow} only.")
        self.allow = allow


class QuotaExceeded(GatewayError):
    """`limit`: which limit refused (`requests`, `units`, `concurrency`, …). `retry_after_ms` None: waiting
    does not help. `limit_headers`: bucket levels, as on any answer, if they are known.
    """

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    anthropic_type = "rate_limit_error"

    def __init__(self, limit: str, message: str, retry_after_ms: int | None) -> None:
        if retry_after_ms is None:
            advice = "Waiting does not help."
            if limit != "contract":
                advice = "Waiting does not help: the limit must be raised, or the request made smaller."
        else:
            advice = f"Try again in {max(retry_after_ms, 0) / 1000:.3f} s."
        super().__init__(f"{message} {advice}")
        self.limit = limit
        self.limit_headers: list[tuple[bytes, bytes]] = []
        self.retry_after_ms = retry_after_ms
        if retry_after_ms is None or retry_after_ms > RETRY_AFTER_MS_MAX:
            self.should_retry = False


class BudgetUsedUp(QuotaExceeded):
    """What a budget allows in its period is spent. `which`: the budget, in words. `until_ms`: when its next
    period begins, None for never.
    """

    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, which: str, until_ms: int | None) -> None:
        again = ""
        if until_ms is not None:
            moment = datetime.fromtimestamp(-(-until_ms // 1000), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            again = f" It begins again at {moment}."
        GatewayError.__init__(self, f"{which} is used up.{again}")
        self.limit = "budget"
        self.limit_headers = []
        self.should_retry = False


class TryLater(GatewayError):
    """Try again later: `retry_after_ms` says when, if that is known."""

    status = 503
    anthropic_type = "overloaded_error"

    def __init__(self, retry_after_ms: int | None = None) -> None:
        super().__init__()
        self.retry_after_ms = self.retry_after_ms if retry_after_ms is None else retry_after_ms


class Overloaded(TryLater):
    """There are engines, but too many requests wait already."""

    code = "overloaded"
    text = "The model is overloaded. Try again later."


class ReceivingFull(TryLater):
    """The process holds as many bytes of arriving bodies as it may."""

    code = "receiving_full"
    text = "Too many requests are being received now. Try again later."


class NoInstance(TryLater):
    """No engine of the model can be reached at all."""

    code = "no_instance"
    text = "No instance of this model serves this route now. Try again later."


class InstancesBusy(NoInstance):
    """Every instance of the model has said that it takes no more requests now."""

    code = "overloaded"
    text = Overloaded.text


class DependencyUnavailable(TryLater):
    """Redis is away and the tenant's policy is to refuse, its data cannot be trusted, or the catalogue has
    not been read yet.
    """

    code = "dependency_unavailable"
    text = "The service is degraded and cannot admit requests now. Try again later."
    retry_after_ms = 1_000


class UsageUnavailable(TryLater):
    """The receipt of a request cannot be looked up now."""

    code = "usage_unavailable"
    text = "Usage cannot be looked up now. Try again later."


class BatchUnavailable(TryLater):
    """The batch service does not answer."""

    code = "batch_unavailable"
    text = "Files and batches cannot be reached now. Try again later."
    retry_after_ms = 1_000


class RequestQuarantined(TryLater):
    """It was running on two engines when these died, so it may be what kills them."""

    code = "request_quarantined"
    text = "This request was running on two engines when they failed. It is refused for some minutes."
    should_retry = False


class UpstreamProtocolError(GatewayError):
    """The engine's answer is malformed: garbage, HTML, or a stream that ends without a finish."""

    status = 502
    code = "upstream_protocol_error"
    text = "The engine sent an answer that cannot be understood."


class EngineFailed(GatewayError):
    """The engine died, failed inside, or refused the gateway rather than the caller."""

    status = 502
    code = "engine_failed"
    text = "The engine failed while processing your request."


class RequestStopped(GatewayError):
    """We stopped the request before its end. `code`: the ending of its usage event."""

    status = 503
    anthropic_type = "overloaded_error"
    text = "The request was stopped by the service."

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.code = ending.value
        if ending not in _RETRY_HELPS:
            self.should_retry = False


class DeadlineExceeded(GatewayError):
    status = 504
    code = "deadline_exceeded"
    anthropic_type = "timeout_error"
    text = "The request took longer than allowed and was stopped."


# Others are `RequestStopped`.
_ERROR_OF: dict[Ending, type[GatewayError]] = {
    Ending.CLIENT_DISCONNECT: ClientDisconnected,
    Ending.DEADLINE: DeadlineExceeded,
    Ending.ENGINE_DIED: EngineFailed,
    Ending.ENGINE_ERROR: EngineFailed,
    Ending.PROTOCOL_ERROR: UpstreamProtocolError,
}


def error_of(ending: Ending) -> GatewayError:
    """The error that a caller gets whose request was stopped, or whose stream broke off, with this ending."""
    kind = _ERROR_OF.get(ending)
    return RequestStopped(ending) if kind is None else kind()


def _quotable(name: str) -> str:
    """A name from the caller, short and in valid UTF-8."""
    return name[:NAME_CHARS_MAX].encode("utf-8", "replace").decode()
