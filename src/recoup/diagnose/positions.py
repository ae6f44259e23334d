"""Damage by place in the completion: whether a student goes wrong at once, or only once it has been writing for a while.

Bins widen fourfold, since damage changes fast at first and little later, and each holds tokens enough. A token's KL is that of
the distribution it was drawn from, and its hidden state the one that predicts it: at the token before.

Shapes: B rollouts, T padded tokens, N completion tokens (row by row).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.diagnose.layers import TokenStates
from recoup.models.sample import Rollouts
from recoup.results import PositionDamage

FIRST_END, WIDER = 4, 4  # bins 0 to 4, 4 to 16, 16 to 64, …


def position_damage(rollouts: Rollouts, kl_N: Float[Tensor, " N"], states: TokenStates) -> tuple[PositionDamage, ...]:
    """KL and mean CKA over the blocks, by the number of the completion token.

    Args:
        rollouts: whose completions are compared.
        kl_N: token KL, nats, of every completion token, row by row.
        states: hidden states on the same rollouts; CKA is that of the tokens held.
    """
    damage = []
    for start, end in bins(int(rollouts.completion_BT.sum(1).max())):
        within_BT = numbered(rollouts.completion_BT, start, end)
        kl = kl_N[within_BT[rollouts.completion_BT].to(kl_N.device)]
        predicts_BT = torch.zeros_like(within_BT)
        predicts_BT[:, :-1] = within_BT[:, 1:]
        damage.append(
            PositionDamage(
                start=start,
                end=end,
                num_tokens=len(kl),
                token_kl_nats=float(kl.double().mean()),
                mean_cka=states.mean_cka(predicts_BT),
            )
        )
    return tuple(damage)


def bins(longest: int) -> list[tuple[int, int]]:
    """Bins that cover completion tokens number 0 to `longest` − 1; none is empty."""
    edges = [0, FIRST_END]
    while edges[-1] < longest:
        edges.append(edges[-1] * WIDER)
    return list(zip(edges, [*edges[1:-1], longest], strict=False))


def numbered(completion_BT: Bool[Tensor, "B T"], start: int, end: int) -> Bool[Tensor, "B T"]:
    """Completion tokens number `start` to `end` (the last not among them) of each rollout."""
    number_BT = completion_BT.cumsum(1) - 1
    return completion_BT & (number_BT >= start) & (number_BT < end)
