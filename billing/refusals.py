"""The errors with which the control plane refuses what an operator asked for. One tree; the admin API turns
each into a status.

RequestRefused
├── Invalid         the request contradicts itself or the catalogue's rules
├── NotFound        what it names does not exist
├── Conflict        it exists already, or its state forbids this
├── Forbidden       whoever asks may not do this
└── Unreachable     a machine or server that it needs did not answer
"""


class RequestRefused(Exception):
    """`message` is for people, `code` for programs. `param`: the field at fault, if there is one."""

    code = "refused"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class Invalid(RequestRefused):
    """The request contradicts itself or the catalogue's rules."""

    code = "invalid_value"


class NotFound(RequestRefused):
    """What it names does not exist."""

    code = "not_found"


class Conflict(RequestRefused):
    """It exists already, or its state forbids this."""

    code = "already_exists"


class Forbidden(RequestRefused):
    """Whoever asks may not do this."""

    code = "role_not_allowed"


class Unreachable(RequestRefused):
    """A machine or server that it needs did not answer."""

    code = "unreachable"
