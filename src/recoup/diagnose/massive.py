"""What dominates CKA and says little: attention-sink tokens and massive-activation dimensions.

Sun et al. (2402.17762) call an activation massive that exceeds 100 and is 1,000 times the median of its hidden state: a few
dimensions of a few tokens, mostly the first, alike for every text, on which attention settles. Here ratios alone decide, since
the size of hidden states is a model's own. Measured on SmolLM2-135M-Instruct in bfloat16, 1,826 tokens of 16 conversations:

- First tokens are 44 to 48 times as long as the median token of their sequence (median over blocks), no other token is more
  than 1.3 times. In blocks 2 to 8 some " the" (25 tokens of 16 conversations) are up to 9.8 times as long, and nowhere else. So a
  sink is a first token, or one more than 10 times as long after most blocks, as delimiters are in models that Sun et al. name.
- Dimension 507 is 397 to 815 times the median in blocks 2 to 8 (on those " the", where it holds 32 to 59% of the variance of
  tokens that are no sinks) and 889 to 14,136 times in blocks 11 to 28 (on first tokens: 79 to 98% of the variance of all).
  Ordinary outlier dimensions, large on every token, stay below 70. At a ratio of 1,000, blocks 2 to 8 would pass; at 100, up to
  20 dimensions go, with 18% of the other tokens' variance; at 300 no more than 4.

A model that trains may settle its attention on other tokens than it did. Their states are then far longer in one model than in
the other, and CKA sees little else. So a sink of either model is left out of both, and tokens that are one in a single model
are counted. Tokens that are long after some blocks only are not covered: of a student at 3 bits after ten steps, in which no
sink had moved, CKA reads 0.06 to 0.07 in blocks 12 to 18, and 0.81 to 0.87 with the teacher's massive dimensions left out.

Shapes: B rollouts, T padded tokens, L blocks, N tokens, D width.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SINK_RATIO = 10  # times the median length of its sequence's tokens
MASSIVE_RATIO = 300  # times the median magnitude
MEDIAN_TOKENS = 256  # of which the median is taken: of all of them it takes as long as CKA


def sink_tokens(states: Sequence[Float[Tensor, "B T D"]], attention_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """The first token of each sequence, and tokens more than `SINK_RATIO` times as long as its median after most blocks.

    Args:
        states: hidden states after each block; pads may hold anything.
        attention_BT: true at real tokens.
    """
    norms_LBT = torch.stack([torch.linalg.vector_norm(states_BTD.float(), dim=-1) for states_BTD in states])
    medians_LB1 = norms_LBT.masked_fill(~attention_BT, torch.nan).nanmedian(-1, keepdim=True).values
    long_BT = (norms_LBT / medians_LB1).median(0).values > SINK_RATIO
    first_BT = attention_BT.cumsum(-1) == 1
    return attention_BT & (first_BT | long_BT)


def massive_dims(states_ND: Float[Tensor, "N D"]) -> tuple[int, ...]:
    """Dimensions in which some token's magnitude is more than `MASSIVE_RATIO` times the median magnitude, ascending."""
    magnitudes_ND = states_ND.abs()
    some_ND = magnitudes_ND[:: -(-len(states_ND) // MEDIAN_TOKENS)]
    return tuple((magnitudes_ND.amax(0) > MASSIVE_RATIO * some_ND.float().median()).nonzero()[:, 0].tolist())


def variance_share(states_ND: Float[Tensor, "N D"], dims: Collection[int]) -> float:
    """Share of the tokens' variance, summed over dimensions, that lies in `dims`; at least two tokens that differ."""
    variance_D = states_ND.double().var(0)
    return float(variance_D[list(dims)].sum() / variance_D.sum())
