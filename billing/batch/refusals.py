"""Why the batch service refuses what a caller asks. Each becomes an error in the caller's dialect."""

from typing import Final


class Refused(Exception):
    """The root. The message is for the caller."""

    status: int = 400
    type: str = "invalid_request_error"
    anthropic_type: str = "invalid_request_error"
    code: str = "invalid_value"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class NotThere(Refused):
    """One body for "unknown" and "not yours"."""

    status = 404
    anthropic_type = "not_found_error"
    code = "not_found"


class TooLarge(Refused):
    """A body above its cap."""

    status = 413
    anthropic_type = "request_too_large"
    code = "body_too_large"


class KeyReused(Refused):
    """Another request came under this Idempotency-Key before."""

    status = 422


class KeyInUse(Refused):
    """The first request under this Idempotency-Key is not answered yet."""

    status = 409


class Unauthorized(Refused):
    """Whoever asks is no gateway of ours."""

    status = 401
    anthropic_type = "authentication_error"
    code = "invalid_service_key"


class Unavailable(Refused):
    """A store does not answer."""

    status = 503
    type = "server_error"
    anthropic_type = "api_error"
    code = "batch_unavailable"


NO_FILE: Final = "No such File object: there is none with this id."
NO_BATCH: Final = "No batch found with this id."
