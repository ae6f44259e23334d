"""What sampling asks of a decoder, and where its tokens stand.

Shapes: B rows, T padded tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Decoder(Protocol):
    """One batch at a time: `prefill`, then a `step` per token, with `keep` wherever rows leave."""

    def prefill(
        self, tokens_BT: Int[Tensor, "B T"], attention_BT: Bool[Tensor, "B T"], room: int
    ) -> Float[Tensor, "B V"]:
        """Begin a batch of prompts padded on the left; returns the logits of what follows them.

        Args:
            tokens_BT: prompts; the last column holds real tokens only.
            attention_BT: true at real tokens.
            room: number of `step` calls that may follow.
        """
        ...

    def step(self, tokens_B: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Append one token a row; returns the logits of what follows it."""
        ...

    def keep(self, slots: Sequence[int]) -> None:
        """Row i of the smaller batch is what row `slots[i]` was; either `slots[i] == i` or `slots[i] >= len(slots)`."""
        ...


def position_ids(attention_BT: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that count real tokens only."""
    return (attention_BT.long().cumsum(-1) - 1).clamp_min(0)
