"""Several runs that differ by their seed: intervals, tests and verdicts which hold for another seed and for other items.

Every run scores the same items, so seeds and items are crossed, not nested: score_si = mean + seed_s + item_i + rest_si. An
item drawn anew within each seed (the hierarchical bootstrap) would forget that a hard item is hard for every seed; what is
resampled are seeds and items apart, as in the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1, 386; no
bootstrap is exact for crossed effects, McCullagh 2000, and this one errs on the wide side).

We differ from it at the level of seeds. Three seeds drawn with replacement vary by only (S − 1) / S of what they should,
and their percentiles are a normal's at best, where Student's t asks for 4.3 standard errors instead of 1.96. So a draw moves
each model's mean over seeds by Σ_s g_s (m_s − m̄) / √(S χ²), with g_s standard normal, χ² of S − 1 degrees of freedom and one
such draw for all models: m̄ and every difference of models then vary as t_{S−1} times their standard error over seeds. To
this the item bootstrap of the scores averaged over seeds is added, which makes a draw of their sum: the Behrens–Fisher
distribution, whose intervals are a little too wide. `rest` is counted by both levels (σ²/(SI) once too often), which also
errs on the wide side. Simulated (1000 times three seeds, 100 items, standard deviations 0.2, 0.4 and 0.3 of
seeds, items and rest), the 95% intervals hold the truth in 96% of cases, the pigeonhole bootstrap's in 81%, the hierarchical
one's in 76%, those over items alone in 52%; without an effect of seeds, in 98%, 97%, 85% and 96%. Intervals of a mean may
pass 1; those of two seeds reach 12.7 standard errors each way. Three seeds prove little: of a gain of 10 points on 200
items, seeds spreading by 2 points, they find 4 in 10, five seeds 8 in 10.

With one seed nothing is known of its spread: the interval is over items alone, and speaks of that run only. The tails are
heavy: with 1000 draws the ends of an interval over three seeds move by a tenth of its width, with 10,000 by 3%.

Shapes: S seeds, K models, I items, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recoup.errors import DataError
from recoup.evaluate.compare import DEGRADED, RECOVERED, REFERENCE, Contrast, comparison, verdict
from recoup.evaluate.statistics import DrawsR, MeansRK, bootstrap_means, estimate, holm, paired_p_value
from recoup.results import Estimate, TaskComparison, TaskItems

SEED_LEVEL = 1  # tells the generator of this level from that of the items

ScoresSI = Float[np.ndarray, "S I"]
ScoresSKI = Float[np.ndarray, "S K I"]


@dataclass(frozen=True)
class SeedRun:
    """One seed's models on every task; a reference or an injury that all seeds share is the same record in each."""

    reference: Sequence[TaskItems]
    degraded: Sequence[TaskItems]
    recovered: Sequence[TaskItems] | None = None


@dataclass(frozen=True)
class SeedComparison:
    """One task over several seeds: what `TaskComparison` holds, of the means over seeds, and each seed's own means."""

    comparison: TaskComparison
    num_seeds: int
    by_seed: tuple[tuple[float, ...], ...]  # per seed: reference, degraded and, where there is one, recovered


def draws_over_seeds(scores_SKI: ScoresSKI, num_draws: int, seed: int) -> MeansRK:
    """Draws of each model's mean score, jointly over the models; the module's docstring has the scheme.

    A function of a row (a mean, a difference, a ratio) is a draw of that function of the models.
    """
    num_seeds = len(scores_SKI)
    items_RK = bootstrap_means(scores_SKI.mean(axis=0), num_draws, seed)
    if num_seeds == 1:
        return items_RK
    generator = np.random.default_rng([seed, SEED_LEVEL])
    means_SK = scores_SKI.mean(axis=2)
    normal_RS = generator.standard_normal((num_draws, num_seeds))
    chi_squared_R1 = generator.chisquare(num_seeds - 1, (num_draws, 1))
    return items_RK + normal_RS / np.sqrt(num_seeds * chi_squared_R1) @ (means_SK - means_SK.mean(axis=0))


def paired_difference(first_SI: ScoresSI, second_SI: ScoresSI, num_bootstrap: int, seed: int) -> tuple[Estimate, float]:
    """First minus second (two methods, say), paired by seed and item: the difference and its two-sided p.

    Seeds that only share a number are independent, and then pairing them costs degrees of freedom but biases nothing.
    """
    draws_RK = draws_over_seeds(np.stack([first_SI, second_SI], axis=1), num_bootstrap, seed)
    difference_R = draws_RK[:, 0] - draws_RK[:, 1]
    value = float(first_SI.mean() - second_SI.mean())
    return estimate(value, difference_R), _p_value(first_SI, second_SI, difference_R, seed)


def compare_seeds(runs: Sequence[SeedRun], *, num_bootstrap: int, seed: int) -> tuple[SeedComparison, ...]:
    """One comparison per task, by the rules of `compare`, over the seeds of `runs`.

    `recovered_fraction` is that of the means over seeds, not the mean of the seeds' fractions, which has no mean where a
    seed's damage may be near zero.

    Args:
        runs: one per seed, each with the same tasks, metrics and items.
        num_bootstrap: draws; 10,000 where there are few seeds.
        seed: of the draws.

    Raises:
        DataError: there is no run, or the runs were not scored on the same tasks, items and metrics.
    """
    models = [_models(run) for run in runs]
    names = [[(task.task, task.metric, task.item_ids) for task in model] for run in models for model in run]
    if not names or any(others != names[0] for others in names) or len({len(run) for run in models}) > 1:
        raise DataError(
            "the seeds were not scored on the same items and models; evaluate every seed with one limit, evaluation seed"
            " and task list"
        )
    scores = [_scores(models, index) for index in range(len(models[0][REFERENCE]))]
    draws = [draws_over_seeds(task, num_bootstrap, seed) for task in scores]
    pairs = [(DEGRADED, REFERENCE), (RECOVERED, DEGRADED), (RECOVERED, REFERENCE)][
        : 3 if len(models[0]) > RECOVERED else 1
    ]
    asked = [_contrasts(scores, draws, pair, seed) for pair in pairs]
    return tuple(
        SeedComparison(
            comparison=comparison(items, draw, task.mean(axis=(0, 2)), answers[0].below, verdict(*answers)),
            num_seeds=len(runs),
            by_seed=tuple(map(tuple, task.mean(axis=2).tolist())),
        )
        for items, task, draw, *answers in zip(models[0][REFERENCE], scores, draws, *asked, strict=True)
    )


def _models(run: SeedRun) -> list[Sequence[TaskItems]]:
    return [run.reference, run.degraded] + ([] if run.recovered is None else [run.recovered])


def _scores(models: Sequence[Sequence[Sequence[TaskItems]]], task: int) -> ScoresSKI:
    return np.array([[model[task].scores for model in run] for run in models], dtype=float)


def _contrasts(
    scores: Sequence[ScoresSKI], draws: Sequence[MeansRK], pair: tuple[int, int], seed: int
) -> list[Contrast]:
    """First against second of `pair` for each task; p is corrected over the tasks."""
    first, second = pair
    p_values = [
        _p_value(task[:, first], task[:, second], draw[:, first] - draw[:, second], seed)
        for task, draw in zip(scores, draws, strict=True)
    ]
    differences = [float((task[:, first] - task[:, second]).mean()) for task in scores]
    return [Contrast(*values) for values in zip(differences, p_values, holm(p_values), strict=True)]


def _p_value(first_SI: ScoresSI, second_SI: ScoresSI, difference_R: DrawsR, seed: int) -> float:
    """The larger of two: by the draws over seeds and items, and by the paired test of the items' means over seeds.

    The draws alone are too sure of a handful of items (three of three lost are lost in every resample); the paired test
    alone knows nothing of seeds. What was observed counts as one of the draws, so p is never 0 (Phipson and Smyth 2010).
    """
    beyond = min(int((difference_R <= 0).sum()), int((difference_R >= 0).sum()))
    by_draws = min(1.0, 2 * (1 + beyond) / (1 + len(difference_R)))
    return max(by_draws, paired_p_value(first_SI.mean(axis=0), second_SI.mean(axis=0), len(difference_R), seed))
