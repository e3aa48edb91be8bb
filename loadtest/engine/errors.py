"""Refusals in the words of vLLM 0.32. Its two forms differ by who refuses: pydantic ("Bad Request") or the
server ("BadRequestError").

EngineError
├── Invalid      a field is missing or of the wrong type; OpenAI's form on every route
├── BadRequest   the server will not do it
└── NotFound     no such model
"""

from typing import Any


class EngineError(Exception):
    """An answer other than 200. `anthropic` picks the form of /v1/messages, where the refusing part has
    one.
    """

    status = 400
    kind = "BadRequestError"
    param: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self, *, anthropic: bool = False) -> dict[str, Any]:
        """The JSON that vLLM would send."""
        if anthropic:
            return {"type": "error", "error": {"type": self.kind, "message": self.message}}
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        }


class BadRequest(EngineError):
    """Understood, and refused."""


class NotFound(EngineError):
    """A model that is not served here."""

    status = 404
    kind = "NotFoundError"


class Invalid(EngineError):
    """What pydantic found, one line a finding."""

    kind = "Bad Request"

    def __init__(self, kind: str, loc: str, msg: str, given: object, context: str = "") -> None:
        detail = f"{{'type': '{kind}', 'loc': '{loc}', 'msg': '{msg}', 'input': '{_shown(given)}'{context}}}"
        super().__init__(f"1 validation error:\n  {detail}", loc)

    def body(self, *, anthropic: bool = False) -> dict[str, Any]:
        return super().body()


def _shown(given: object) -> str:
    return f"<dict of {len(given)} items>" if isinstance(given, dict) else str(given)
