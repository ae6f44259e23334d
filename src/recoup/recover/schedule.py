"""What counts how much at a step: weights of terms, of tokens, and the length that completions may have.

Weights of a step's tokens sum to 1 over terms, micro-batches and processes, before importance weights. A token's weight
needs the batch only through one number, its term's `total_weight`, which adds up over micro-batches and processes: so 8 rollouts
in one pass, 8 passes of one and 2 processes of 4 give the same gradient.

Shapes: N completion tokens (row by row, as `tokens_BT[completion_BT]`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.config import Rollout, Term
from recoup.models.logits import completion_rows
from recoup.models.sample import Rollouts

TokenWeights = Literal["uniform", "by_rollout"]


def weight_at(term: Term, step: int, steps: int) -> float:
    """A term's weight at a step: from `weight` at step 0 to `final_weight` at the last, linearly."""
    if term.final_weight is None:
        return term.weight
    done = step / max(1, steps - 1)
    return (1 - done) * term.weight + done * term.final_weight


def allowed_tokens(rollout: Rollout, step: int, steps: int) -> int:
    """Completion length allowed at a step, tokens: short-to-long rollouts grow linearly, then stay at `max_tokens`."""
    growing = rollout.grow_until * steps  # steps
    if rollout.start_tokens is None or step >= growing:
        return rollout.max_tokens
    return rollout.start_tokens + int((rollout.max_tokens - rollout.start_tokens) * step / growing)


def term_shares(weights: Sequence[float], totals: Sequence[float]) -> tuple[float, ...]:
    """Shares of the terms in one step's loss: their weights over the sum of those that have a token to score.

    Args:
        weights: of the terms at this step.
        totals: `total_weight` of the terms' rollouts, over all micro-batches and processes; 0 where a term has none.

    Returns:
        Numbers that sum to 1; all 0 where no term with a weight has a token.
    """
    present = [weight if total > 0 else 0.0 for weight, total in zip(weights, totals, strict=True)]
    whole = sum(present)
    return tuple(weight / whole if whole > 0 else 0.0 for weight in present)


def scored_tokens(rollouts: Rollouts, skip_tokens: int) -> Bool[Tensor, " N"]:
    """Which completion tokens count: all but the first `skip_tokens` of each completion (SDFT masks 3, 2601.19897)."""
    order_BT = rollouts.completion_BT.long().cumsum(-1)
    return (order_BT > skip_tokens)[rollouts.completion_BT]


def relative_weights(rollouts: Rollouts, skip_tokens: int, kind: TokenWeights) -> Float[Tensor, " N"]:
    """Weights of completion tokens against each other: 0 for the first `skip_tokens` of each completion.

    The rest weigh 1 each, or 1 / (scored tokens of their rollout), so that every rollout weighs 1 whatever its length.
    """
    scored_N = scored_tokens(rollouts, skip_tokens).float()
    if kind == "uniform":
        return scored_N
    rows_N = completion_rows(rollouts)
    lengths_B = scored_N.new_zeros(len(rollouts.tokens_BT)).index_add(0, rows_N, scored_N)
    return scored_N / lengths_B[rows_N].clamp_min(1)


def total_weight(rollouts: Rollouts, skip_tokens: int, kind: TokenWeights) -> float:
    """Sum of `relative_weights`, exactly: scored tokens, or rollouts that have any."""
    scored_B = (rollouts.completion_BT.sum(-1) - skip_tokens).clamp_min(0)
    return float(scored_B.sum() if kind == "uniform" else (scored_B > 0).sum())


def step_weights(
    relative_N: Float[Tensor, " N"], share: float, total: float, importance_N: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Weights of a micro-batch's tokens in the step's loss.

    Importance weights come in after the normalisation: their mean under the sampler is 1 (less where they are truncated),
    and dividing by their sum would need every micro-batch's forward pass before the first backward pass.

    Args:
        relative_N: of this micro-batch.
        share: of the term in the step (`term_shares`).
        total: of the term's rollouts, over all micro-batches and processes (`total_weight`).
        importance_N: p_student / p_sampler of each token, truncated.
    """
    weights_N = relative_N * (share / total if total > 0 else 0.0)
    return weights_N if importance_N is None else weights_N * torch.where(relative_N > 0, importance_N, 0.0)
