"""The curve, its inverse, and intervals by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.results import Estimate, PastPrediction
from recoup.triage.predict import TYPICAL_ERROR, left_at_end, left_by_losses, recovered_fraction, typical_error
from tests.triage.records import around

RATES = [1.0] * 6


def losses(start: float, rate: float, count: int) -> list[float]:
    """On the curve: start · (1 + rate · steps)^(−1/3), with a learning rate of 1."""
    return [start * (1 + rate * step) ** (-1 / 3) for step in range(count)]


def test_by_hand() -> None:
    """Half is left after spending 1: (1 + c)^(−1/3) = 1/2, so c = 7. After 9 in all: (1 + 63)^(−1/3) = 1/4."""
    assert left_at_end(0.5, 1.0, 9.0) == pytest.approx(0.25)


def test_what_did_not_help_is_not_extrapolated() -> None:
    assert left_at_end(1.0, 1.0, 9.0) == 1.0
    assert left_at_end(1.3, 1.0, 9.0) == 1.3


def test_nothing_left_stays_finite() -> None:
    assert 0 <= left_at_end(0.0, 1.0, 9.0) < 1e-5


@given(st.floats(0.01, 2), st.floats(0.1, 10), st.floats(1, 20))
def test_more_learning_leaves_less_and_none_leaves_what_there_was(left: float, spent: float, times: float) -> None:
    assert left_at_end(left, spent, spent) == pytest.approx(left)
    assert left_at_end(left, spent, spent * times) <= left + 1e-9


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("start", [0.2, 3.0])
def test_losses_on_the_curve_give_it_back(start: float, rate: float) -> None:
    """After six steps (1 + 6 rate)^(−1/3) is left, whatever the loss began at; rates are tried 12% apart."""
    assert left_by_losses(losses(start, rate, 6), RATES) == pytest.approx((1 + 6 * rate) ** (-1 / 3), abs=0.02)


def test_learning_rates_are_what_counts() -> None:
    """Half the learning rate for twice the steps is the same curve at twice the points."""
    whole, halves = losses(1.0, 2.0, 4), losses(1.0, 1.0, 8)
    assert left_by_losses(whole, [1.0] * 4) == pytest.approx(left_by_losses(halves, [0.5] * 8), abs=0.03)


def test_rising_losses_promise_nothing() -> None:
    assert left_by_losses([1.0, 1.1, 1.3], [1.0] * 3) == 1.0


def test_noise_does_not_carry_the_fit_away() -> None:
    noisy = [loss * (1 + 0.05 * (-1) ** step) for step, loss in enumerate(losses(1.0, 1.0, 6))]
    assert left_by_losses(noisy, RATES) == pytest.approx(7 ** (-1 / 3), abs=0.12)


def test_fraction_and_its_interval_by_hand() -> None:
    """Left 1/2 (0.4 to 0.6) after 1 of 9: 1/4 left, so 0.75 back.

    0.4: c = 0.4^−3 − 1 = 14.625, (1 + 131.625)^(−1/3) = 0.1961; 0.6: c = 3.6296, (33.667)^(−1/3) = 0.3097. With an error of 0.1,
    196 thousandths: low 0.75 − √(0.0597² + 0.196²) = 0.5451, high 0.75 + √(0.0539² + 0.196²) = 0.9533.
    """
    fraction = recovered_fraction(around(0.5, 0.1), 1.0, 9.0, 0.1)
    assert fraction.value == pytest.approx(0.75)
    assert fraction.low == pytest.approx(0.5451, abs=1e-4)
    assert fraction.high == pytest.approx(0.9533, abs=1e-4)


@given(st.floats(0.05, 1.5), st.floats(0, 0.04), st.floats(0.01, 0.5))
def test_the_interval_holds_the_value_and_no_more_than_all_comes_back(left: float, half: float, error: float) -> None:
    fraction = recovered_fraction(Estimate(value=left, low=left - half, high=left + half), 1.0, 10.0, error)
    assert fraction.low <= fraction.value <= fraction.high <= 1
    assert fraction.value - fraction.low >= 1.96 * error - 1e-9


def test_past_errors_widen_and_never_narrow() -> None:
    def runs(*errors: float) -> list[PastPrediction]:
        return [PastPrediction(run=str(i), predicted=0.5 + error, actual=0.5) for i, error in enumerate(errors)]

    assert typical_error([]) == TYPICAL_ERROR
    assert typical_error(runs(0.9, 0.9)) == TYPICAL_ERROR  # two say nothing of the spread
    assert typical_error(runs(0.0, 0.0, 0.0)) == TYPICAL_ERROR
    assert typical_error(runs(0.3, -0.3, 0.6)) == pytest.approx(math.sqrt(0.54 / 3))
