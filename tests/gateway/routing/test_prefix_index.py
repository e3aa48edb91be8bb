"""The prefix index: it stays within its bound, matches nothing of another seed or epoch, and forgets what was
used least recently.
"""

from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.prefix_index import PrefixIndex
from gateway.routing.prompt_hashes import BLOCK_BYTES, chain, seed_of

prompts = st.binary(min_size=0, max_size=6).map(
    lambda kinds: b"".join(bytes([each]) * BLOCK_BYTES for each in kinds)
)
ENTRIES = 20


@given(st.lists(st.tuples(prompts, st.integers(1, 12)), max_size=40))
def test_it_never_holds_more_than_its_bound(sent: list[tuple[bytes, int]]) -> None:
    index = PrefixIndex(ENTRIES)
    for prompt, number in sent:
        index.learn(chain(prompt, 1), number)
        assert len(index) <= ENTRIES


@given(st.lists(st.tuples(prompts, st.integers(1, 3)), max_size=8), prompts)
def test_within_its_bound_it_knows_the_longest_common_beginning(
    sent: list[tuple[bytes, int]], asked: bytes
) -> None:
    index = PrefixIndex(1_000)
    for prompt, number in sent:
        index.learn(chain(prompt, 1), number)

    def common(prompt: bytes) -> int:
        depth = 0
        while asked[: (depth + 1) * BLOCK_BYTES] == prompt[: (depth + 1) * BLOCK_BYTES] and (
            (depth + 1) * BLOCK_BYTES <= min(len(asked), len(prompt))
        ):
            depth += 1
        return depth

    expected: dict[int, int] = {}
    for prompt, number in sent:
        if depth := common(prompt):
            expected[number] = max(depth, expected.get(number, 0))
    assert index.depths(chain(asked, 1)) == expected


@given(prompts, st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True))
def test_prompts_of_different_seeds_never_match(prompt: bytes, names: list[str]) -> None:
    index = PrefixIndex(1_000)
    mine, theirs = (seed_of("prompt", "model", "model", name) for name in names)
    index.learn(chain(prompt, theirs), 1)
    assert index.depths(chain(prompt, mine)) == {}


def test_what_was_used_least_recently_is_forgotten_first_and_the_end_of_a_prompt_before_its_beginning() -> (
    None
):
    index = PrefixIndex(4)
    index.learn([11, 12], 1)
    index.learn([21, 22], 1)
    index.learn([11, 12], 1)  # used again
    index.learn([31], 1)
    assert index.depths([21, 22]) == {1: 1}
    assert index.depths([11, 12]) == {1: 2}
    index.learn([32], 1)
    assert index.depths([21, 22]) == {}


def test_an_engine_that_starts_again_has_nothing() -> None:
    index = PrefixIndex(10)
    index.learn([1, 2], index.number("i1", "e1"))
    assert index.depths([1, 2]) == {index.number("i1", "e1"): 2}
    assert index.number("i1", "e2") not in index.depths([1, 2])
    assert index.number("i1", "e1") != index.number("i2", "e1")


def test_it_says_what_an_engine_did_not_have() -> None:
    index = PrefixIndex(10)
    assert index.learn([1, 2], 1) == [1, 2]
    assert index.learn([1, 2, 3], 1) == [3]
    assert index.learn([1, 2, 3], 2) == [1, 2, 3]
    assert index.holder(3) == 2
    assert index.learn([3], 1) == []
    assert index.holder(3) == 1
