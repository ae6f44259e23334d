"""Statistics against values derived by hand, then properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.evaluate import statistics
from recoup.evaluate.statistics import (
    bootstrap_means,
    estimate,
    holm,
    mcnemar_exact,
    paired_p_value,
    recovered_fraction,
    sign_flip,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 32),  # 2 · C(5,0) / 2^5
        (1, 6, 16 / 128),  # 2 · (C(7,0) + C(7,1)) / 2^7 = 2 · 8 / 128
        (2, 2, 1.0),  # 2 · (1 + 4 + 6) / 16 is above 1
        (3, 7, 352 / 1024),  # 2 · (1 + 10 + 45 + 120) / 2^10
    ],
)
def test_mcnemar(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_exact(only_first, only_second) == p
    assert mcnemar_exact(only_second, only_first) == p


def test_mcnemar_of_many_items_does_not_overflow() -> None:
    assert 0 < mcnemar_exact(4800, 5200) < 1e-3  # z = 400 / sqrt(10000) = 4
    assert mcnemar_exact(0, 10_000) == pytest.approx(0, abs=1e-300)


def test_holm() -> None:
    # sorted 0.01, 0.02, 0.03, 0.9 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (never below the one before), 0.9
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.8, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flip_counts_all_eight_sign_patterns() -> None:
    # differences 1, 2, 4: |sum| = 7 under 2 of the 8 sign patterns, so p tends to 1/4
    assert sign_flip(np.array([1.0, 2.0, 4.0]), 20_000, seed=0) == pytest.approx(0.25, abs=0.01)
    assert sign_flip(np.zeros(3), 100, seed=0) == 1.0


def test_the_test_follows_the_scores() -> None:
    binary = np.array([1.0, 1, 1, 1, 1, 0]), np.array([0.0, 0, 0, 0, 0, 0])
    assert paired_p_value(*binary, 100, 0) == 2 / 32  # McNemar: b = 5, c = 0
    graded = np.array([0.5, 0.5]), np.array([0.0, 0.0])
    assert paired_p_value(*graded, 10_000, 0) == pytest.approx(0.5, abs=0.02)  # both flips alike: 2 of 4 patterns


def test_bootstrap_of_a_coin() -> None:
    # the mean of 100 draws from half ones has standard error sqrt(0.25 / 100) = 0.05, so 95% is about 0.5 ± 0.098
    scores = np.array([[0.0, 1.0] * 50])
    found = estimate(0.5, bootstrap_means(scores, 4000, 0)[:, 0])
    assert [found.low, found.high] == pytest.approx([0.40, 0.60], abs=0.011)


def test_resamples_are_joint() -> None:
    first = np.random.default_rng(0).random(50)
    draws = bootstrap_means(np.stack([first, first + 0.25]), 200, 1)
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 0.25)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((2, 30))
    whole = bootstrap_means(scores, 101, 3)
    monkeypatch.setattr(statistics, "CHUNK_DRAWS", 30 * 7)
    np.testing.assert_array_equal(bootstrap_means(scores, 101, 3), whole)


def test_recovered_fraction() -> None:
    # (0.6 − 0.5) / (0.9 − 0.5) = 0.25; the resample without damage is left out
    reference, degraded, recovered = np.array([0.9, 0.8, 0.5]), np.array([0.5, 0.4, 0.5]), np.array([0.6, 0.7, 0.6])
    found = recovered_fraction(0.25, reference, degraded, recovered)
    # ratios 0.25 and 0.75; the 2.5th percentile of two values lies 2.5% of the way
    assert [found.low, found.high] == pytest.approx([0.2625, 0.7375])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_probability_and_falls_with_imbalance(b: int, c: int) -> None:
    p = mcnemar_exact(b, c)
    assert 0 < p <= 1
    if b > c > 0:
        assert mcnemar_exact(b + 1, c - 1) <= p
