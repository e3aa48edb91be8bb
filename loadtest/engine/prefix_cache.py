"""Which blocks of prompts are known already, per cache salt: vLLM's prefix cache, without the keys and
values.
"""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Full blocks only, and never the last token of a prompt: that one must be computed to get the first
    output token.
    """

    def __init__(self, block_tokens: int, blocks_max: int) -> None:
        self._block_tokens = block_tokens
        self._blocks_max = blocks_max
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def match_and_insert(self, salt: str, tokens: Sequence[str] | Sequence[int]) -> tuple[int, int]:
        """(tokens found, tokens newly stored), as `cached_tokens` and `created_cache_tokens` report them."""
        size, blocks = self._block_tokens, self._blocks
        usable = (len(tokens) - 1) // size
        full = len(tokens) // size
        matched, stored, unbroken = 0, 0, True
        parent = hash(salt)
        for block in range(full):
            parent = hash((parent, *tokens[block * size : (block + 1) * size]))
            if parent in blocks:
                blocks.move_to_end(parent)
                if unbroken and block < usable:
                    matched += 1
            else:
                unbroken = False
                blocks[parent] = None
                stored += 1
        while len(blocks) > self._blocks_max:
            blocks.popitem(last=False)
        return matched * size, stored * size

    def clear(self) -> None:
        """Forget everything, as a restart does."""
        self._blocks.clear()
