"""The answers about batches."""

from typing import Literal

from billing.api.answer import Answer, Ms


class LineCounts(Answer):
    """Lines by what came of them. `unserved`: not sent before the batch expired or was cancelled."""

    total: int
    completed: int
    failed: int
    unserved: int


class BatchTokens(Answer):
    """Tokens as the answers say. `cached` is a part of `prompt`."""

    prompt: int
    cached: int
    output: int


class InputError(Answer):
    """What was wrong with a line of the input, or with all of it (`line` is null)."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchAnswer(Answer):
    """A batch. `times`: when it came to each status. `errors`: why it failed, by line of its input. `tokens`:
    as its answers say.
    """

    batch: str
    dialect: Literal["openai", "anthropic"]
    tenant: str
    tenant_name: str
    project: str
    key_id: str
    route: str
    model: str | None
    status: str
    lines: LineCounts
    tokens: BatchTokens
    estimate_tokens: int
    errors: list[InputError] | None
    created_ms: Ms
    expires_ms: Ms
    times: dict[str, int]
