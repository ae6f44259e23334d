"""Who was best at what: pure functions of scores by item.

Choosing the best of many by the items that then prove it flatters it (the winner's curse). So the items of a capability are
parted by the seed: one half chooses, the other estimates the gain. What is significant is decided on all items, each checkpoint
against the student, corrected after Holm over capabilities and checkpoints, which allows for any choice among them; and the
half that did not choose must show a gain too. Of equals the newest is taken: the student has the least way to go back to it.

The share lost is what weights are made of, and compares capabilities with one another: 1 − student / teacher, of a score; for
a log-probability, of the probability of a token that it stands for, 1 − exp(−gain).

Shapes: K checkpoints, I items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recoup.errors import DataError
from recoup.evaluate.compare import contrasts
from recoup.evaluate.statistics import bootstrap_means, estimate
from recoup.history.score import LOG_PROBABILITY
from recoup.results import CapabilityScore, Estimate, TaskItems

NUM_BOOTSTRAP = 2000  # as in a diagnosis
# A sign-flip p resolves 1 / resamples, and Holm multiplies it by the number of tests: at the least corrected p that counts,
# 0.05, so many resamples a test leave some twenty that are as extreme.
RESAMPLES_PER_TEST, MIN_RESAMPLES = 400, 10_000


@dataclass(frozen=True)
class Choice:
    """The best checkpoint of a capability."""

    capability: str
    checkpoint: str
    gain: Estimate  # over the student, on the half of the items that did not choose
    significant: bool
    lost_share: float  # in [0, 1]; 0 where nothing was lost


def compared(items: Sequence[TaskItems], student: Sequence[TaskItems], seed: int) -> tuple[CapabilityScore, ...]:
    """One checkpoint's scores and its gains over the student, capability by capability, on all items.

    Raises:
        DataError: the two were not scored on the same items.
    """
    scores = []
    for own, base in zip(items, student, strict=True):
        _check_paired(own, base)
        pair = np.array([own.scores, base.scores], dtype=float)
        draws_RK = bootstrap_means(pair, NUM_BOOTSTRAP, seed)
        value, before = pair.mean(axis=1).tolist()
        gain = estimate(value - before, draws_RK[:, 0] - draws_RK[:, 1])
        scores.append(CapabilityScore(capability=own.task, score=estimate(value, draws_RK[:, 0]), gain=gain))
    return tuple(scores)


def choose(
    student: Sequence[TaskItems], checkpoints: Mapping[str, Sequence[TaskItems]], seed: int
) -> tuple[Choice, ...]:
    """Choose the best checkpoint for each capability.

    Args:
        student: its items, capability by capability.
        checkpoints: those of each checkpoint, oldest first; the student is not among them.
        seed: parts the items, and seeds the resampling.

    Raises:
        DataError: the models were not scored on the same items.
    """
    for scored in checkpoints.values():
        for own, base in zip(scored, student, strict=True):
            _check_paired(own, base)
    names = list(checkpoints)
    scores = [
        np.array([checkpoints[name][place].scores for name in names], dtype=float) for place in range(len(student))
    ]
    bases = [np.array(items.scores, dtype=float) for items in student]
    pairs = [(own_I, base_I) for own_KI, base_I in zip(scores, bases, strict=True) for own_I in own_KI]
    tests = iter(contrasts(pairs, max(MIN_RESAMPLES, RESAMPLES_PER_TEST * len(pairs)), seed))
    choices = []
    for items, own_KI, base_I in zip(student, scores, bases, strict=True):
        above = [next(tests).above for _ in names]
        best, gain, lost = _best(own_KI, base_I, items.metric, seed)
        significant = above[best] and gain.value > 0
        choices.append(Choice(items.task, names[best], gain, significant, lost if significant else 0.0))
    return tuple(choices)


def halves(num_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Items to choose by and items to judge by, of which there may be one more; each in order."""
    order = np.random.default_rng(seed).permutation(num_items)
    return np.sort(order[: num_items // 2]), np.sort(order[num_items // 2 :])


def lost_share(teacher: float, student: float, metric: str) -> float:
    """Share of the teacher's level that the student lacks, in [0, 1].

    Args:
        teacher: mean score.
        student: mean score, less than the teacher's.
        metric: of the scores.
    """
    if metric == LOG_PROBABILITY:
        return 1 - math.exp(student - teacher)
    return min(1.0, (teacher - student) / teacher) if teacher > 0 else 1.0


def _best(own_KI: np.ndarray, base_I: np.ndarray, metric: str, seed: int) -> tuple[int, Estimate, float]:
    """Index of the checkpoint that one half chooses, and what the other half says: its gain, and the share lost."""
    choosing, judging = halves(len(base_I), seed)
    means_K = own_KI[:, choosing].mean(axis=1)
    best = int(np.flatnonzero(means_K == means_K.max())[-1])
    pair = np.stack([own_KI[best, judging], base_I[judging]])
    draws_RK = bootstrap_means(pair, NUM_BOOTSTRAP, seed)
    teacher, student = pair.mean(axis=1).tolist()
    gain = estimate(teacher - student, draws_RK[:, 0] - draws_RK[:, 1])
    return best, gain, lost_share(teacher, student, metric) if teacher > student else 0.0


def _check_paired(items: TaskItems, base: TaskItems) -> None:
    if (items.task, items.metric, items.item_ids) != (base.task, base.metric, base.item_ids):
        raise DataError(
            f"{items.task}: checkpoints were not scored on the same items; remove the stored scores, run again"
        )
