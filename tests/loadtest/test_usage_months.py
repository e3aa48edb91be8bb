"""Generated months of usage with kills of billing and its stores: nothing is lost, nothing billed twice."""

import subprocess
import sys


def test_usage_is_on_one_invoice_each_whatever_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.usage_months", "--events", "6000", "--kills", "5"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing is lost, nothing is twice" in done.stdout
