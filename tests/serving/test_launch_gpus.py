"""No two instances of a machine get the same GPU."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.launching.gpus import Claim, claim_gpus, gpus_here
from tests.examples import examples

# Names that no machine has, and that no other process of tests takes: the claims are the machine's own.
HERE = tuple(f"test-{os.getpid()}-{number}" for number in range(8))


def test_the_gpus_are_those_that_may_be_seen_else_those_of_the_machine(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpus_here(None, tmp_path) == ("0", "2", "10")
    assert gpus_here("3, GPU-8f", tmp_path) == ("3", "GPU-8f")
    assert gpus_here("", tmp_path) == ()


@settings(max_examples=examples(200))
@given(st.lists(st.integers(0, 5) | st.none(), max_size=20))
def test_claims_are_disjoint_and_as_large_as_asked(asked: list[int | None]) -> None:
    """None releases the oldest."""
    held: list[Claim] = []
    try:
        for count in asked:
            if count is None:
                if held:
                    held.pop(0).release()
                continue
            free = len(HERE) - sum(len(claim.gpus) for claim in held)
            claim = claim_gpus(count, HERE)
            assert (claim is not None) == (count <= free)
            if claim is not None:
                assert len(claim.gpus) == count
                held.append(claim)
            taken = [gpu for claim in held for gpu in claim.gpus]
            assert len(set(taken)) == len(taken)
    finally:
        for claim in held:
            claim.release()


def test_another_process_takes_others_and_its_death_gives_them_back() -> None:
    mine = claim_gpus(2, HERE)
    assert mine is not None
    program = (
        "import sys; from serving.launching.gpus import claim_gpus\n"
        f"claim = claim_gpus(3, {HERE!r}); print(*claim.gpus, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = other.stdout.readline().split()
        assert len(theirs) == 3
        assert not set(theirs) & set(mine.gpus)
        assert claim_gpus(4, HERE) is None
        other.kill()
        other.wait()
    rest = claim_gpus(6, HERE)
    assert rest is not None
    rest.release()
    mine.release()
