"""Intervals over seeds: against Student's t, the item bootstrap and simulated coverage."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import DataError
from recoup.evaluate.compare import compare
from recoup.evaluate.seeds import SeedRun, compare_seeds, draws_over_seeds, paired_difference
from recoup.evaluate.statistics import bootstrap_means
from recoup.results import TaskItems

T_2, T_4 = 4.302653, 2.776445  # Student's t, 0.975 quantile, 2 and 4 degrees of freedom (any table)


def by_seed(means: list[float], num_items: int = 1) -> np.ndarray:
    """One model whose items all score their seed's mean: S 1 I."""
    return np.repeat(np.array(means)[:, None, None], num_items, axis=2)


@pytest.mark.parametrize(
    ("means", "half"),
    [
        ([0.4, 0.5, 0.6], T_2 * 0.1 / 3**0.5),  # s² = (0.01 + 0 + 0.01) / 2 = 0.01
        ([0.2, 0.3, 0.5, 0.7, 0.8], T_4 * (0.065 / 5) ** 0.5),  # s² = (0.09 + 0.04 + 0 + 0.04 + 0.09) / 4 = 0.065
    ],
)
def test_without_item_noise_it_is_students_t(means: list[float], half: float) -> None:
    draws = draws_over_seeds(by_seed(means), 100_000, seed=0)[:, 0]
    low, high = np.percentile(draws, [2.5, 97.5])
    assert [low, high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.03 * half)


def test_equal_seeds_leave_the_item_bootstrap() -> None:
    scores = np.random.default_rng(0).random((2, 30))
    same = np.stack([scores] * 3)
    np.testing.assert_allclose(draws_over_seeds(same, 50, 7), bootstrap_means(scores, 50, 7))


def test_one_seed_speaks_of_its_items_alone() -> None:
    scores = np.random.default_rng(1).random((1, 2, 30))
    np.testing.assert_array_equal(draws_over_seeds(scores, 50, 7), bootstrap_means(scores[0], 50, 7))


def test_both_levels_add_up() -> None:
    # items 0 or 1 in halves: 100 of them have standard error 0.05; five seeds 0.065: s = sqrt(0.065), /sqrt(5) = 0.114
    # variance of t_4 is 4 / (4 − 2) = 2, so the draws' variance is 0.05² + 2 · 0.013 = 0.0285
    coin = np.array([-0.5, 0.5] * 50)
    scores = by_seed([0.2, 0.3, 0.5, 0.7, 0.8], 100) + coin
    assert draws_over_seeds(scores, 100_000, 0)[:, 0].var() == pytest.approx(0.0285, rel=0.1)


def test_draws_are_joint_over_models() -> None:
    rng = np.random.default_rng(2)
    first = rng.random((3, 1, 20))
    draws = draws_over_seeds(np.concatenate([first, first + 0.25], axis=1), 100, 1)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.25)
    found, _ = paired_difference(first[:, 0] + 0.25, first[:, 0], 100, 1)
    assert [found.value, found.low, found.high] == pytest.approx([0.25] * 3)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 99))
def test_intervals_follow_scale_and_shift(num_seeds: int, scale: float, shift: float, seed: int) -> None:
    scores = np.random.default_rng(seed).random((num_seeds, 2, 9))
    draws, moved = draws_over_seeds(scores, 40, seed), draws_over_seeds(scores * scale + shift, 40, seed)
    np.testing.assert_allclose(moved, draws * scale + shift, rtol=1e-9, atol=1e-9)


def nested(scores_SKI: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """The hierarchical bootstrap: seeds, then items anew within each; what the module says not to do."""
    rng = np.random.default_rng(seed)
    num_seeds, _, num_items = scores_SKI.shape
    seeds = rng.integers(num_seeds, size=(num_draws, num_seeds, 1))
    return scores_SKI[seeds, 0, rng.integers(num_items, size=(num_draws, num_seeds, num_items))].mean(axis=(1, 2))[
        :, None
    ]


def coverage(draw: Callable[[np.ndarray, int, int], np.ndarray], spread: tuple[float, float, float]) -> float:
    """Share of 300 simulated experiments (3 seeds, 40 items, true mean 0) whose 95% interval holds the truth."""
    rng = np.random.default_rng(3)
    of_seeds, of_items, of_rest = spread
    hits = 0
    for number in range(300):
        scores = of_seeds * rng.standard_normal((3, 1, 1)) + of_items * rng.standard_normal((1, 1, 40))
        low, high = np.percentile(draw(scores + of_rest * rng.standard_normal((3, 1, 40)), 400, number), [2.5, 97.5])
        hits += low <= 0 <= high
    return hits / 300


@pytest.mark.parametrize(
    "spread", [(0.0, 1.0, 0.0), (0.0, 1.0, 1.0), (0.1, 0.4, 0.3), (0.3, 0.4, 0.3), (1.0, 0.1, 0.1)]
)
def test_intervals_cover_the_truth(spread: tuple[float, float, float]) -> None:
    # 95% of 300 has a standard error of 1.3%; 91% is three of them below
    assert coverage(draws_over_seeds, spread) >= 0.91


def test_simpler_bootstraps_do_not_cover() -> None:
    def items_alone(scores: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
        return bootstrap_means(scores.mean(axis=0), num_draws, seed)

    assert coverage(items_alone, (0.3, 0.4, 0.3)) < 0.7
    assert coverage(nested, (0.0, 1.0, 0.0)) < 0.85
    assert coverage(nested, (0.3, 0.4, 0.3)) < 0.85


def test_a_recovered_fraction_over_seeds_covers_the_truth() -> None:
    # reference 0.8, degraded 0.4 for all seeds; recovered 0.7 on average: (0.7 − 0.4) / (0.8 − 0.4) = 0.75
    rng = np.random.default_rng(4)
    hits, num = 0, 60
    for number in range(num):
        reference, degraded = rng.random((2, 150)) < np.array([[0.8], [0.4]])
        chance = 0.7 + 0.03 * rng.standard_normal(3)
        models = [(reference, degraded, rng.random(150) < seed) for seed in chance]
        [found] = compare_seeds(
            [run(*(list(m.astype(float)) for m in model)) for model in models], num_bootstrap=400, seed=number
        )
        fraction = found.comparison.recovered_fraction
        assert fraction is not None
        hits += fraction.low <= 0.75 <= fraction.high
    assert hits / num >= 0.87  # 95% less three standard errors of 2.8%


def items(scores: list[float], task: str = "t") -> TaskItems:
    ids = tuple(str(number) for number in range(len(scores)))
    return TaskItems(task=task, metric="acc", item_ids=ids, scores=tuple(scores))


def run(reference: list[float], degraded: list[float], recovered: list[float] | None = None) -> SeedRun:
    return SeedRun([items(reference)], [items(degraded)], None if recovered is None else [items(recovered)])


def test_a_healed_task_over_seeds() -> None:
    reference, degraded = [1.0] * 20, [0.0] * 15 + [1.0] * 5
    recovered = [[1.0] * 18 + [0.0] * 2, [0.0] * 2 + [1.0] * 18, [1.0] * 19 + [0.0]]
    [found] = compare_seeds([run(reference, degraded, seed) for seed in recovered], num_bootstrap=2000, seed=0)
    assert found.num_seeds == 3
    assert found.by_seed == ((1.0, 0.25, 0.9), (1.0, 0.25, 0.9), (1.0, 0.25, 0.95))
    task = found.comparison
    assert task.verdict == "healed"
    assert task.recovered is not None
    assert task.recovered_fraction is not None
    mean = (0.9 + 0.9 + 0.95) / 3  # 0.91667
    assert task.recovered.value == pytest.approx(mean)
    assert task.recovered_fraction.value == pytest.approx((mean - 0.25) / 0.75)
    assert task.recovered_fraction.low < (mean - 0.25) / 0.75 < task.recovered_fraction.high


def test_a_gain_of_one_seed_in_three_is_no_proof() -> None:
    # means 0.25, 0.25, 1: the gain over degraded is 0.25 ± 4.3 · 0.433 / sqrt(3), where each item alone is surely better
    degraded = [0.0] * 15 + [1.0] * 5
    runs = [run([1.0] * 20, degraded, seed) for seed in (degraded, degraded, [1.0] * 20)]
    [found] = compare_seeds(runs, num_bootstrap=2000, seed=0)
    assert found.comparison.verdict == "not healed"
    [lucky] = compare_seeds(runs[2:], num_bootstrap=2000, seed=0)
    assert lucky.comparison.verdict == "healed"


def test_few_items_are_no_proof_however_many_seeds() -> None:
    # 3 of 3 lost in each of 3 seeds is lost in every draw; McNemar of the items: 2 / 2^3 = 0.25
    lost = np.zeros((3, 3)), np.ones((3, 3))
    _, p = paired_difference(*lost, 500, 0)
    assert p == 0.25
    [found] = compare_seeds([run([1.0] * 3, [0.0] * 3)] * 3, num_bootstrap=500, seed=0)
    assert found.comparison.verdict == "unharmed"


def test_seeds_weigh_in_the_p_value() -> None:
    # mean difference 0.25, s = 0.433, so t = 1 on 2 degrees of freedom: p = 1 − 1/√3 = 0.4226 (t_2's closed form)
    degraded = np.zeros((3, 400))
    recovered = np.zeros((3, 400))
    recovered[2] = 0.75
    _, p = paired_difference(recovered, degraded, 20_000, 0)
    assert p == pytest.approx(1 - 1 / 3**0.5, abs=0.02)
    assert paired_difference(degraded, degraded, 100, 0)[1] == 1.0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999))
def test_p_is_the_same_both_ways(seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 2, (2, 3, 12)).astype(float)
    (there, p), (back, q) = paired_difference(first, second, 99, seed), paired_difference(second, first, 99, seed)
    assert 0 < p <= 1
    assert p == pytest.approx(q)
    assert [there.value, there.low, there.high] == pytest.approx([-back.value, -back.high, -back.low])


def test_equal_seeds_give_the_estimates_of_one() -> None:
    rng = np.random.default_rng(5)
    one = run(*(list(rng.integers(0, 2, 40).astype(float)) for _ in range(3)))
    assert one.recovered is not None
    [expected] = compare(one.reference, one.degraded, one.recovered, num_bootstrap=200, seed=0)
    [found] = compare_seeds([one] * 3, num_bootstrap=200, seed=0)
    assert found.comparison.num_items == expected.num_items == 40
    for name in ("reference", "degraded", "recovered", "damage", "gain", "remaining"):
        estimates = [getattr(record, name) for record in (found.comparison, expected)]
        values = [[estimate.value, estimate.low, estimate.high] for estimate in estimates]
        assert values[0] == pytest.approx(values[1])


def test_holm_runs_over_the_tasks() -> None:
    # 6 of 6 lost: p = 2 / 2^6 = 0.03125, significant alone, not as one of two (0.0625)
    alone = SeedRun([items([1.0] * 6)], [items([0.0] * 6)])
    same = items([1.0] * 6, task="u")
    two = SeedRun([*alone.reference, same], [*alone.degraded, same])
    assert [task.comparison.verdict for task in compare_seeds([alone] * 2, num_bootstrap=999, seed=0)] == ["damaged"]
    assert [task.comparison.verdict for task in compare_seeds([two] * 2, num_bootstrap=999, seed=0)] == ["unharmed"] * 2


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run([1.0], [0.0]), run([1.0, 1.0], [0.0, 0.0])],  # other items
        [run([1.0], [0.0]), run([1.0], [0.0], [1.0])],  # one repaired, one not
        [SeedRun([items([1.0])], [items([1.0], task="u")])],  # other tasks
    ],
)
def test_runs_that_do_not_pair_are_refused(runs: list[SeedRun]) -> None:
    with pytest.raises(DataError, match="not scored on the same items and models"):
        compare_seeds(runs, num_bootstrap=10, seed=0)
