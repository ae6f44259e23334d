"""Reference, degraded and recovered on the same items: estimates, tests and a verdict for each task.

Tests are two-sided and paired by item (McNemar where scores are 0 or 1, else sign-flip). Holm's correction runs over the
tasks, for each of the questions apart: degraded against reference, recovered against degraded, recovered against
reference. "Below" and "above" are the sign of the mean difference.

Verdicts. Damage is significant when the degraded model is below the reference, Holm-corrected p < 0.05.

| damage | recovered model | verdict |
|---|---|---|
| significant | none | damaged |
| significant | above the degraded (Holm) and not below the reference (uncorrected p) | healed |
| significant | above the degraded (Holm) and below the reference (uncorrected p) | partly healed |
| significant | not above the degraded | not healed |
| none | none | unharmed |
| none | below the reference or the degraded (Holm) | newly damaged |
| none | the degraded is above the reference (Holm), and the recovered not below either | preserved |
| none | otherwise | unharmed |

So "healed" takes proof of a gain, and the test that could contradict it is not softened by the correction; "newly damaged"
takes proof of a loss. "Preserved" is a gain of the damaging step (the task it was fine-tuned on) that the repair kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recoup.errors import DataError
from recoup.evaluate.statistics import (
    SIGNIFICANT,
    ScoresI,
    bootstrap_means,
    estimate,
    holm,
    paired_p_value,
    recovered_fraction,
)
from recoup.results import TaskComparison, TaskItems

Verdict = Literal["healed", "partly healed", "not healed", "preserved", "newly damaged", "damaged", "unharmed"]
REFERENCE, DEGRADED, RECOVERED = range(3)


@dataclass(frozen=True)
class Contrast:
    """One model against another on one task: mean difference, p, and p corrected over the tasks."""

    difference: float
    p: float
    holm_p: float

    @property
    def above(self) -> bool:
        """Significantly higher, corrected."""
        return self.difference > 0 and self.holm_p < SIGNIFICANT

    @property
    def below(self) -> bool:
        """Significantly lower, corrected."""
        return self.difference < 0 and self.holm_p < SIGNIFICANT

    @property
    def below_uncorrected(self) -> bool:
        """Significantly lower, each task for itself."""
        return self.difference < 0 and self.p < SIGNIFICANT


def compare(
    reference: Sequence[TaskItems],
    degraded: Sequence[TaskItems],
    recovered: Sequence[TaskItems] | None,
    *,
    num_bootstrap: int,
    seed: int,
) -> tuple[TaskComparison, ...]:
    """One comparison per task.

    Raises:
        DataError: the models were not scored on the same tasks, items and metrics.
    """
    models = [reference, degraded] if recovered is None else [reference, degraded, recovered]
    names = [[(task.task, task.metric, task.item_ids) for task in model] for model in models]
    if any(others != names[0] for others in names):
        raise DataError(
            "the models were not scored on the same items; evaluate them with one limit, seed and task list"
        )
    scores = [np.array([task.scores for task in states], dtype=float) for states in zip(*models, strict=True)]
    damages = contrasts([(task[DEGRADED], task[REFERENCE]) for task in scores], num_bootstrap, seed)
    if recovered is None:
        verdicts = [verdict(damage) for damage in damages]
    else:
        gains = contrasts([(task[RECOVERED], task[DEGRADED]) for task in scores], num_bootstrap, seed)
        remaining = contrasts([(task[RECOVERED], task[REFERENCE]) for task in scores], num_bootstrap, seed)
        verdicts = [verdict(*three) for three in zip(damages, gains, remaining, strict=True)]
    return tuple(
        comparison(items, bootstrap_means(task, num_bootstrap, seed), task.mean(axis=1), damage.below, word)
        for items, task, damage, word in zip(reference, scores, damages, verdicts, strict=True)
    )


def contrasts(pairs: Sequence[tuple[ScoresI, ScoresI]], num_resamples: int, seed: int) -> list[Contrast]:
    """First against second for each task; p is corrected over the tasks."""
    p_values = [paired_p_value(first, second, num_resamples, seed) for first, second in pairs]
    differences = [float((first - second).mean()) for first, second in pairs]
    return [Contrast(*values) for values in zip(differences, p_values, holm(p_values), strict=True)]


def verdict(damage: Contrast, gain: Contrast | None = None, remaining: Contrast | None = None) -> Verdict:
    """One word for a task; the table in the module's docstring.

    Args:
        damage: degraded against reference.
        gain: recovered against degraded; none without a recovered model.
        remaining: recovered against reference; none without a recovered model.
    """
    if gain is None or remaining is None:
        return "damaged" if damage.below else "unharmed"
    if damage.below:
        if not gain.above:
            return "not healed"
        return "partly healed" if remaining.below_uncorrected else "healed"
    if gain.below or remaining.below:
        return "newly damaged"
    return "preserved" if damage.above else "unharmed"


def comparison(
    items: TaskItems, draws_RK: np.ndarray, means_K: np.ndarray, damage_significant: bool, word: Verdict
) -> TaskComparison:
    """One task's estimates, from the models' means and the joint bootstrap draws of them.

    Args:
        items: names the task.
        draws_RK: resampled mean scores; models as REFERENCE, DEGRADED, RECOVERED number them, the last may be missing.
        means_K: mean scores.
        damage_significant: whether a recovered fraction has a meaning.
        word: the verdict.
    """
    draws, means = draws_RK.T, means_K.tolist()
    healed = len(means) > RECOVERED
    damage = means[DEGRADED] - means[REFERENCE]
    return TaskComparison(
        task=items.task,
        metric=items.metric,
        num_items=len(items.scores),
        reference=estimate(means[REFERENCE], draws[REFERENCE]),
        degraded=estimate(means[DEGRADED], draws[DEGRADED]),
        recovered=estimate(means[RECOVERED], draws[RECOVERED]) if healed else None,
        damage=estimate(damage, draws[DEGRADED] - draws[REFERENCE]),
        gain=estimate(means[RECOVERED] - means[DEGRADED], draws[RECOVERED] - draws[DEGRADED]) if healed else None,
        remaining=estimate(means[RECOVERED] - means[REFERENCE], draws[RECOVERED] - draws[REFERENCE])
        if healed
        else None,
        recovered_fraction=recovered_fraction((means[RECOVERED] - means[DEGRADED]) / -damage, *draws)
        if healed and damage_significant
        else None,
        damage_significant=damage_significant,
        verdict=word,
    )
