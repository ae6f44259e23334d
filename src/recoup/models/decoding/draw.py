"""Draw tokens: one uniform number a row, and the inverse of the cumulative distribution.

Row i's numbers come from Philox, a counter-based generator (Salmon et al., SC 2011; numpy), keyed by (seed, i): they do
not depend on which other rows are drawn, by which process, or in what order. The cumulative sum is taken in two stages,
over sums of 256 probabilities and then inside one of them: 1/256 of the additions that would wait for each other, and in
float64, so that the unlikeliest tokens keep their chance.

Shapes: B rows, T tokens, V vocabulary, G groups of W probabilities.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP_WIDTH = 256
BELOW_ONE = 1 - 1e-12  # so that rounding never points past the last token that can be drawn
KEY_BITS = 64


def uniforms(seed: int, rows: Sequence[int], num_tokens: int) -> Float[Tensor, "B T"]:
    """A table of float64 numbers in [0, 1), row by row a function of (seed, row) alone, token by token independent."""
    table = np.empty((len(rows), num_tokens))
    for place, row in enumerate(rows):
        key = np.array([seed % 2**KEY_BITS, row], dtype=np.uint64)
        table[place] = np.random.Generator(np.random.Philox(key=key)).random(num_tokens)
    return torch.from_numpy(table)


def draw(
    logits_BV: Float[Tensor, "B V"], temperature: float, uniform_B: Float[Tensor, " B"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """One token a row: argmax at temperature 0, else the token of softmax(logits / temperature) at which `uniform_B` falls.

    Args:
        logits_BV: logits, of any float type; everything after them is float32 or float64.
        temperature: divides the logits.
        uniform_B: float64 numbers in [0, 1); unused at temperature 0.

    Returns:
        The tokens, and the natural logarithm of the probability that each was drawn with (0 at temperature 0).
    """
    if temperature == 0:
        likeliest_B = logits_BV.max(
            -1
        ).indices  # on a CPU in bf16 a third of argmax's time; both take the first of equals
        return likeliest_B, torch.zeros(len(logits_BV), device=logits_BV.device)
    probability_BV = torch.softmax(logits_BV.to(torch.float32, copy=True).div_(temperature), dim=-1)
    padding = -logits_BV.shape[1] % GROUP_WIDTH
    padded_BV = torch.nn.functional.pad(probability_BV, (0, padding)) if padding else probability_BV
    groups_BGW = padded_BV.unflatten(-1, (-1, GROUP_WIDTH))
    cumulative_BG = groups_BGW.sum(-1).double().cumsum(-1)
    target_B1 = cumulative_BG[:, -1:] * uniform_B[:, None].clamp_max(BELOW_ONE)
    group_B1 = torch.searchsorted(cumulative_BG, target_B1, right=True)
    before_B1 = torch.where(group_B1 > 0, cumulative_BG.gather(1, (group_B1 - 1).clamp_min(0)), 0.0)
    inside_BW = groups_BGW[torch.arange(len(group_B1), device=group_B1.device), group_B1[:, 0]].double().cumsum(-1)
    rest_B1 = (target_B1 - before_B1).minimum(inside_BW[:, -1:] * BELOW_ONE)
    token_B1 = group_B1 * GROUP_WIDTH + torch.searchsorted(inside_BW, rest_B1, right=True)
    return token_B1[:, 0], probability_BV.gather(1, token_B1)[:, 0].log()
