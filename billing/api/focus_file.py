"""FOCUS as the export answers it: which dataset of which version, which of its columns, and in which file."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

from sqlalchemy import Connection

from billing.api.control import ControlPlane
from billing.exports.focus import Asked, cost_and_usage
from billing.exports.focus_columns import Dataset, Version, columns_of
from billing.exports.focus_supporting import billing_periods, contract_commitments, invoice_details
from billing.exports.table import Column, FileForm, Row, write
from billing.refusals import Invalid

PREFIX: Final = "focus-"
DatasetName = Literal["cost-and-usage", "contract-commitment", "billing-period", "invoice-detail"]
_READ: Final[dict[Dataset, Callable[[Connection, Asked], Iterator[Row]]]] = {
    Dataset.COST_AND_USAGE: cost_and_usage,
    Dataset.CONTRACT_COMMITMENT: contract_commitments,
    Dataset.BILLING_PERIOD: billing_periods,
    Dataset.INVOICE_DETAIL: invoice_details,
}


def focus_file(
    control: ControlPlane, asked: Asked, version: str, dataset: str, form: FileForm, columns: str | None
) -> Iterator[bytes]:
    """The file in pieces. Raises Invalid, also for a dataset that the version does not have; Conflict where
    Parquet cannot be written.
    """
    chosen = _chosen(columns_of(Version(version), Dataset(dataset)), columns)
    if not chosen:
        raise Invalid(f"FOCUS {version} has no {dataset}.", param="dataset")

    def rows() -> Iterator[Row]:
        with control.reading() as connection:
            # What is recorded meanwhile is in no query, or in all.
            connection.execution_options(isolation_level="REPEATABLE READ")
            yield from _READ[Dataset(dataset)](connection, asked)

    return write(form, chosen, rows())


def _chosen(columns: Sequence[Column], named: str | None) -> Sequence[Column]:
    """All, or those that are named, in their order. Raises Invalid for others."""
    if named is None:
        return columns
    wanted = {name.strip() for name in named.split(",")}
    if unknown := wanted - {column.name for column in columns}:
        raise Invalid(f"There is no column {sorted(unknown)[0]!r}.", param="columns")
    return [column for column in columns if column.name in wanted]
