"""The objective of one step: a weighted mean of per-token divergences over the terms (dual objective, 2604.15794).

Shapes: N completion tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from recoup.models.logits import batches
from recoup.models.sample import Rollouts
from recoup.recover.teacher import Teacher


@dataclass(frozen=True)
class TermBatch:
    """One term's rollouts in one step."""

    rollouts: Rollouts
    teacher: Teacher
    weight: float  # of the term; weights of a step's terms sum to 1


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts of one forward pass, which of their completion tokens count, and what each of those weighs."""

    rollouts: Rollouts
    teacher: Teacher
    scored_N: Bool[Tensor, " N"]  # false at the first `skip_tokens` tokens of each completion
    token_weight: float  # term weight / scored tokens of the term, so that the step's weights sum to 1


def micro_batches(terms: list[TermBatch], size: int, skip_tokens: int) -> Iterator[MicroBatch]:
    """Cut every term's rollouts into forward passes of at most `size` rollouts.

    Every scored token of a term weighs the same, whatever its rollout's length and however the cut falls, so that
    8 rollouts in one pass and 8 passes of one rollout give the same gradient.
    """
    for term in terms:
        total = int(scored_tokens(term.rollouts, skip_tokens).sum())
        for part in batches(term.rollouts, size):
            scored_N = scored_tokens(part, skip_tokens)
            if scored_N.any():
                yield MicroBatch(part, term.teacher, scored_N, term.weight / total)


def scored_tokens(rollouts: Rollouts, skip_tokens: int) -> Bool[Tensor, " N"]:
    """Which completion tokens count: all but the first `skip_tokens` of each completion (SDFT masks 3)."""
    order_BT = rollouts.completion_BT.long().cumsum(-1)
    return (order_BT > skip_tokens)[rollouts.completion_BT]


def shared_logits(logits_NV: Tensor, scored_N: Bool[Tensor, " N"], num_shared: int) -> Tensor:
    """Rows that count, over the vocabulary that student and teacher share."""
    return logits_NV[:, :num_shared] if bool(scored_N.all()) else logits_NV[scored_N, :num_shared]


def weighted_sum(per_token_N: Tensor, token_weight: float) -> Tensor:
    """The micro-batch's share of the step's mean divergence, nats per token: the one place where tokens are averaged."""
    return per_token_N.sum(dtype=torch.float32) * token_weight
