"""The answers about makers and the books."""

from billing.api.answer import Answer, Decimal, Ms, Usd


class MakerTermsAnswer(Answer):
    """What the maker of a model gets from a moment on: a share of what tenants pay, or USD per million billed
    tokens.
    """

    model: str
    maker: str
    from_ms: Ms
    share_percent: Decimal | None
    input: Usd | None
    output: Usd | None


class StatementLine(Answer):
    """What is owed to a maker for a model: `owed_so_far` for all until the end of the month, `amount` of it
    not stated before, below 0 if more was given back. Tokens and `revenue`, what tenants pay for the model,
    are of all until then.
    """

    maker: str
    model: str
    billed_prompt: int
    billed_output: int
    revenue: Usd
    owed_so_far: Usd
    amount: Usd


class BooksAnswer(Answer):
    """A closed month."""

    month: str
    closed_ms: Ms
    statements: list[StatementLine]


class BalanceAnswer(Answer):
    """What an account holds for a holder; debits are positive."""

    account: str
    holder: str
    usd: Usd
