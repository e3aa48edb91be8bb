"""The columns of a line of economics, for tables of people."""

from typing import Any

from deploy.cli.output import Columns, number, rounded


def _inner(whole: str, part: str) -> Any:
    return lambda row: rounded(row[whole][part])


# Of a line, in tables.
FIGURES: Columns = {
    "REVENUE": number("revenue"), "COST": number("cost"), "MARGIN": number("margin"),
    "MACHINE-H": number("machine_hours"),
    "UNIT-H": _inner("unit_hours", "calibrated"), "SOLD": _inner("unit_hours", "sold"),
    "LENT": _inner("unit_hours", "lent"), "IDLE": _inner("unit_hours", "idle"),
    "OTHER USE": _inner("unit_hours", "other"), "USED": _inner("unit_hours", "used"),
    "COMMITTED": _inner("commitment", "total_commitment"),
    "% OF IT USED": _inner("commitment", "utilization_percentage"),
    "ECON. %": number("economic_utilization_percentage"),
    "MARGIN/GPU-H": _inner("per_gpu_hour", "margin"), "/KWH": _inner("per_kwh", "margin"),
    "/MW-YEAR": _inner("per_mw_year", "margin"),
}  # fmt: skip
