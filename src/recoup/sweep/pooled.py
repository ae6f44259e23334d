"""Scores of several tasks as one: their mean, each task counting the same, with intervals over seeds and items.

The draws are those of `recoup.evaluate.seeds`, in two parts. What moves with the seed is drawn once for all tasks, since a seed
that is bad at one task may be bad at the next: the draws are of each seed's mean over tasks. Items of different tasks have
nothing to do with each other: each task's are drawn by a generator of its own.

Shapes: S seeds, K models, I items of a task, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from jaxtyping import Float

from recoup.evaluate.compare import DEGRADED, RECOVERED, REFERENCE
from recoup.evaluate.seeds import ScoresSKI, draws_over_seeds
from recoup.evaluate.statistics import MeansRK, bootstrap_means, estimate, recovered_fraction
from recoup.report.partial import student
from recoup.results import Estimate

# Student's t, 0.975 quantile, by degrees of freedom from 1 (any table)
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

MeansK = Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Pooled:
    """Models' mean scores, with joint draws of them."""

    means_K: MeansK
    draws_RK: MeansRK

    def model(self, number: int) -> Estimate:
        """One model's mean score."""
        return estimate(float(self.means_K[number]), self.draws_RK[:, number])

    def difference(self, first: int, second: int) -> Estimate:
        """First model minus second."""
        value = float(self.means_K[first] - self.means_K[second])
        return estimate(value, self.draws_RK[:, first] - self.draws_RK[:, second])

    def fraction(self) -> Estimate | None:
        """(recovered − degraded) / (reference − degraded); none where the interval of the damage reaches 0."""
        damage = self.difference(REFERENCE, DEGRADED)
        if damage.low <= 0:
            return None
        gain = self.means_K[RECOVERED] - self.means_K[DEGRADED]
        return recovered_fraction(float(gain / damage.value), *self.draws_RK.T)


def pooled(tasks: Sequence[ScoresSKI], num_draws: int, seed: int) -> Pooled:
    """The models' means over seeds and items, then over tasks; of one task, the draws of `draws_over_seeds`."""
    items_RK = np.mean(
        [bootstrap_means(task_SKI.mean(axis=0), num_draws, seed + n) for n, task_SKI in enumerate(tasks)], axis=0
    )
    by_seed_SK1 = np.mean([task_SKI.mean(axis=2, keepdims=True) for task_SKI in tasks], axis=0)
    means_K = by_seed_SK1.mean(axis=(0, 2))
    # each seed's mean as the only item: of the draws over seeds and items, what moves with the seed
    return Pooled(means_K, items_RK + draws_over_seeds(by_seed_SK1, num_draws, seed) - means_K)


def over_seeds(values: Sequence[Estimate]) -> Estimate:
    """Mean of the seeds' values; its interval has both parts, Student's t over seeds and that of the prompts.

    All seeds have the same prompts, so averaging takes nothing off the second, which is the mean of the seeds' own intervals
    on each side. The two are independent and add in quadrature. Of one seed: its own interval.
    """
    if len(values) == 1:
        return values[0]
    found = np.array([value.value for value in values])
    middle = float(found.mean())
    half = float(t_quantile(len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5)
    below = float(np.mean([value.value - value.low for value in values]))
    above = float(np.mean([value.high - value.value for value in values]))
    return Estimate(value=middle, low=middle - hypot(half, below), high=middle + hypot(half, above))


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t; past the table by its series, which is 0.1% low at 11, then better."""
    return T_975[degrees - 1] if degrees <= len(T_975) else student(degrees)
