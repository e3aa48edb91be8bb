"""How many examples a property test draws: a third of its number, unless TAAS_THOROUGH=1 asks for all of
them.

They are drawn anew in each run, so that many short runs see what a long one does.
"""

import os

_PART = 1 if os.environ.get("TAAS_THOROUGH") == "1" else 3


def examples(number: int) -> int:
    """For `settings(max_examples=…)`."""
    return max(1, number // _PART)
