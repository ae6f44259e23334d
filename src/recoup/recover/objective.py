"""The objective of one step: weighted per-token divergences over the terms (dual objective, 2604.15794), cut into passes.

Shapes: N completion tokens, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.config import Recover
from recoup.divergence import HiddenTargets, Targets, TopKTargets, overlap
from recoup.divergence.head import Head
from recoup.models.logits import rows_of
from recoup.models.sample import Rollouts
from recoup.recover.demonstration import with_prompts
from recoup.recover.schedule import relative_weights, step_weights, term_shares, total_weight, weight_at
from recoup.recover.terms import TermData
from recoup.training.processes import Processes

OVERLAP_ROWS = 256  # rows of logits alive at once


@dataclass(frozen=True)
class TermBatch:
    """One term's rollouts in one step."""

    index: int
    term: TermData
    rollouts: Rollouts
    shown: tuple[tuple[int, ...], ...] | None  # the teacher's prompts where they are others, a row each
    share: float  # of the term in the step's loss
    total: float  # weight of its rollouts, over all processes


@dataclass(frozen=True)
class MicroBatch:
    """Rollouts of one forward pass: as the student and as the teacher sees them, and the weight of each completion token."""

    batch: TermBatch
    rollouts: Rollouts
    to_teacher: Rollouts
    weights_N: Float[Tensor, " N"]


def term_batches(
    config: Recover,
    terms: Sequence[TermData],
    rollouts: Sequence[Rollouts | None],
    place: tuple[int, Sequence[float]],
    processes: Processes,
) -> list[TermBatch]:
    """The step's rollouts with their shares in its loss.

    Args:
        config: of the repair.
        terms: of the objective.
        rollouts: this process's, by term; null where a term has none.
        place: the step, and what balancing multiplies each term's weight by.
        processes: over which a term's tokens are counted.
    """
    step, factors = place
    kind, skip = config.token_weights, config.skip_tokens
    totals = processes.sum([0.0 if part is None else total_weight(part, skip, kind) for part in rollouts])
    weights = [weight_at(term.config, step, config.steps) * f for term, f in zip(terms, factors, strict=True)]
    by_term = zip(terms, rollouts, term_shares(weights, totals), totals, strict=True)
    return [
        TermBatch(index, term, part, _shown(term, part), share, total)
        for index, (term, part, share, total) in enumerate(by_term)
        if part is not None and total > 0
    ]


def micro_batches(config: Recover, batches: Sequence[TermBatch], size: int) -> Iterator[MicroBatch]:
    """Cut every term's rollouts into forward passes of at most `size` rollouts.

    A token's weight does not depend on the cut, so that 8 rollouts in one pass and 8 passes of one rollout give the same
    gradient.
    """
    for batch in batches:
        for start in range(0, len(batch.rollouts.tokens_BT), size):
            rows = slice(start, start + size)
            part = rows_of(batch.rollouts, rows)
            relative_N = relative_weights(part, config.skip_tokens, config.token_weights)
            weights_N = step_weights(relative_N, batch.share, batch.total)
            if bool((weights_N > 0).any()):
                shown = part if batch.shown is None else with_prompts(part, batch.shown[rows])
                yield MicroBatch(batch, part, shown, weights_N)


def only(targets: Targets, counts_N: Tensor) -> Targets:
    """The targets of the tokens that count."""
    if isinstance(targets, TopKTargets):
        return TopKTargets(targets.ids_NK[counts_N], targets.logp_NK[counts_N])
    return HiddenTargets(targets.hidden_ND[counts_N], targets.head)


def tokens_as_targets(tokens_N: Tensor) -> TopKTargets:
    """Cross-entropy as a divergence: the one token that stands there has all the probability, and no entropy."""
    return TopKTargets(tokens_N[:, None], torch.zeros(len(tokens_N), 1, device=tokens_N.device))


@torch.no_grad()
def overlaps(
    hidden_ND: Float[Tensor, "N D"], head: Head, targets: HiddenTargets, num_shared: int
) -> Float[Tensor, " N"]:
    """sum_v min(p_T, p_S) of each token, `OVERLAP_ROWS` at a time."""
    found = []
    for start in range(0, len(hidden_ND), OVERLAP_ROWS):
        rows = slice(start, start + OVERLAP_ROWS)
        student_NV = head.logits(hidden_ND[rows])[:, :num_shared]
        teacher_NV = targets.head.logits(targets.hidden_ND[rows])[:, :num_shared]
        found.append(overlap(student_NV, teacher_NV))
    return torch.cat(found) if found else hidden_ND.new_zeros(0)


def _shown(term: TermData, rollouts: Rollouts) -> tuple[tuple[int, ...], ...] | None:
    """What the teacher sees of each rollout's prompt."""
    if not term.shown:
        return None
    prompt_BT = rollouts.attention_BT & ~rollouts.completion_BT
    ids = [tuple(row[mask].tolist()) for row, mask in zip(rollouts.tokens_BT, prompt_BT, strict=True)]
    return tuple(term.shown[prompt] for prompt in ids)
