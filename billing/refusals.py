"""Why the control plane refuses what an operator asked for. One tree; the admin API turns each into a status.

Refused
├── Invalid         the request contradicts itself or the catalogue's rules
├── NotFound        what it names is not there
├── Conflict        it is there already, or its state forbids this
└── Unreachable     a machine or server that it needs did not answer
"""


class Refused(Exception):
    """`message` is for people, `code` for programs, `param` names the field at fault, if one is."""

    code = "refused"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code


class Invalid(Refused):
    """The request contradicts itself or the catalogue's rules."""

    code = "invalid_value"


class NotFound(Refused):
    """What it names is not there."""

    code = "not_found"


class Conflict(Refused):
    """It is there already, or its state forbids this."""

    code = "already_exists"


class Unreachable(Refused):
    """A machine or server that it needs did not answer."""

    code = "unreachable"
