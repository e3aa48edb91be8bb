"""Generated months of usage with kills of billing and its stores: nothing is lost, nothing billed twice. A
small run of what `python -m loadtest.usage_months` does.
"""

from loadtest.usage_months import run_all


def test_usage_is_on_one_invoice_each_whatever_is_killed() -> None:
    run = run_all(events=2_000, kills=5)
    assert run.wrong == []
