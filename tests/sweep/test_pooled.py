"""Several tasks as one score: against the draws of one task, Student's t and arithmetic by hand."""

import numpy as np
import pytest

from recoup.evaluate.seeds import draws_over_seeds
from recoup.results import Estimate
from recoup.sweep.pooled import Pooled, over_seeds, pooled, t_quantile

T_2 = 4.302653


def test_one_task_has_the_draws_of_that_task() -> None:
    scores = np.random.default_rng(0).random((3, 2, 20))
    np.testing.assert_allclose(pooled([scores], 50, 7).draws_RK, draws_over_seeds(scores, 50, 7))


def test_tasks_count_the_same_whatever_their_size() -> None:
    # one task of 2 items, mean 1/2; one of 10, mean 1/10: (0.5 + 0.1) / 2 = 0.3
    small, large = np.array([[[1.0, 0.0]]]), np.array([[[1.0] + [0.0] * 9]])
    assert pooled([small, large], 10, 0).means_K == pytest.approx([0.3])


def test_a_bad_seed_is_bad_at_every_task() -> None:
    # both tasks' items all score 0.4, 0.5, 0.6 by seed; so does their mean: t_2 · 0.1 / sqrt(3), not smaller by sqrt(2)
    task = np.repeat(np.array([0.4, 0.5, 0.6])[:, None, None], 4, axis=2)
    found = pooled([task, task], 100_000, 0).model(0)
    half = T_2 * 0.1 / 3**0.5
    assert [found.low, found.high] == pytest.approx([0.5 - half, 0.5 + half], abs=0.03 * half)


def test_items_of_tasks_are_drawn_apart() -> None:
    # two tasks of 100 coins each: the mean's variance is (0.25 / 100) / 2, and would be 0.25 / 100 were the draws the same
    coins = np.array([0.0, 1.0] * 50)[None, None]
    assert pooled([coins, coins], 20_000, 0).draws_RK.var() == pytest.approx(0.00125, rel=0.05)


def test_fraction_is_none_where_the_damage_may_be_nothing() -> None:
    draws = np.array([[0.8, 0.4, 0.7], [0.6, 0.4, 0.5]])
    found = Pooled(np.array([0.7, 0.4, 0.6]), draws).fraction()
    assert found is not None
    assert found.value == pytest.approx(2 / 3)  # (0.6 − 0.4) / (0.7 − 0.4)
    assert [found.low, found.high] == pytest.approx([0.5 + 0.025 * 0.25, 0.75 - 0.025 * 0.25])  # between 1/2 and 3/4
    assert Pooled(np.array([0.5, 0.4, 0.6]), np.array([[0.8, 0.4, 0.7], [0.2, 0.4, 0.5]])).fraction() is None


def test_over_seeds() -> None:
    values = [Estimate(value=value, low=value, high=value) for value in (1.0, 2.0, 3.0)]
    found = over_seeds(values)  # standard deviation 1
    assert [found.value, found.low, found.high] == pytest.approx([2, 2 - T_2 / 3**0.5, 2 + T_2 / 3**0.5], rel=1e-4)
    assert over_seeds(values[:1]) == values[0]


def test_seeds_that_agree_are_not_certain() -> None:
    # no spread over seeds: what is left is that of the prompts, which all seeds share
    same = [Estimate(value=1.0, low=0.7, high=1.4)] * 3
    found = over_seeds(same)
    assert [found.value, found.low, found.high] == pytest.approx([1, 0.7, 1.4])
    # spread over seeds 4 below and above (4 = t_2 s / sqrt(3)), prompts 3: 5 in quadrature
    s = 4 * 3**0.5 / T_2
    apart = [Estimate(value=value, low=value - 3, high=value + 3) for value in (-s, 0.0, s)]
    found = over_seeds(apart)
    assert [found.low, found.high] == pytest.approx([-5, 5], rel=1e-4)


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (10, 2.2281), (11, 2.20099), (30, 2.04227), (10**6, 1.95996)]
)
def test_t_quantile(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=1.1e-3)
