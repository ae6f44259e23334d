"""From the first steps of a repair to its end: pure functions of numbers.

Token KL is taken to fall as a power of the learning that was spent, the sum of the steps' learning rates (AdamW moves a weight by
about the learning rate a step, whatever the gradient's size, so a step of the warm-up counts for what it is):

    KL(s) = KL(0) · (1 + c s)^(−1/3)

with one unknown, c, that the first steps give. What is predicted is a share of the KL that is left, so neither its size
nor the text it was measured on enters. Why a power, and why this one: of the exponents 1/5 … 1 the finished runs of `results/`
are predicted best from their first six steps by 1/4 to 2/5 (errors of the recovered fraction 0.00, 0.01, 0.08 and 0.12 at
1/3); an exponential says that all comes back. Four runs, of which two are nearly the same, fix no exponent to
two digits, so none is fitted to the run at hand.

What it does not know: a repair that goes on-policy changes its text on the way, one with a learning rate that is too large
falls and then rises, and beyond the run's first tenth it extrapolates. Hence the interval: the sampling error of the pilot and
the error of past predictions, together.
"""

import math
from collections.abc import Sequence

from recoup.results import Estimate, PastPrediction

EXPONENT = 1 / 3
TYPICAL_ERROR = (
    0.1  # of a predicted fraction, root mean square; the four runs above have 0.07, and are the ones it was chosen on
)
LEAST_RUNS = 3  # fewer past errors say nothing of their spread
NORMAL_95 = 1.96  # standard deviations
LEAST_LEFT = 1e-6  # share of the KL: nothing is repaired without rest
# values of c that are tried, times the learning spent: from "nothing happens" to "nearly all in the first step"
RATES = (0.0, *(10 ** (power / 20) for power in range(-60, 101)))


def left_at_end(left: float, spent: float, planned: float) -> float:
    """Share of the token KL that is left when all of the `planned` learning is done.

    Args:
        left: share that was left after the pilot; 1 or more where it did not help, and then nothing is hoped for.
        spent: learning of the pilot, the sum of its learning rates.
        planned: learning of the whole repair.
    """
    if left >= 1:
        return left
    rate = (max(left, LEAST_LEFT) ** (-1 / EXPONENT) - 1) / spent
    return _left(rate, planned)


def left_by_losses(losses: Sequence[float], learning_rates: Sequence[float]) -> float:
    """Share of the loss that is left after these steps, read off their losses where nobody measured on held-out text.

    The curve above with the least squared error of log losses, each taken before its step; its height is free.

    Args:
        losses: of the first steps, above 0.
        learning_rates: of the same steps.
    """
    spent = [math.fsum(learning_rates[:step]) for step in range(len(losses) + 1)]
    scale = spent[-1]
    logs = [math.log(loss) for loss in losses]
    best = min(RATES, key=lambda rate: _misfit(logs, [math.log(_left(rate / scale, at)) for at in spent[:-1]]))
    return _left(best / scale, scale)


def recovered_fraction(left: Estimate, spent: float, planned: float, error: float) -> Estimate:
    """1 − KL at the end / KL at the start, with the interval of the pilot's sampling error and `error` together.

    Args:
        left: share of the KL left after the pilot, with its 95% interval.
        spent: learning of the pilot.
        planned: learning of the whole repair.
        error: of predictions, root mean square.
    """
    value, low, high = (1 - left_at_end(share, spent, planned) for share in (left.value, left.high, left.low))
    margin = NORMAL_95 * error
    return Estimate(
        value=value,
        low=value - math.hypot(value - low, margin),
        high=min(1.0, value + math.hypot(high - value, margin)),
    )


def typical_error(past: Sequence[PastPrediction]) -> float:
    """Root mean square error of predictions. A few runs that went well by luck do not narrow the interval."""
    if len(past) < LEAST_RUNS:
        return TYPICAL_ERROR
    squares = [(run.predicted - run.actual) ** 2 for run in past]
    return max(TYPICAL_ERROR, math.sqrt(math.fsum(squares) / len(squares)))


def _left(rate: float, spent: float) -> float:
    return float((1 + rate * spent) ** -EXPONENT)


def _misfit(logs: Sequence[float], curve: Sequence[float]) -> float:
    rest = [log - at for log, at in zip(logs, curve, strict=True)]
    height = math.fsum(rest) / len(rest)
    return math.fsum((value - height) ** 2 for value in rest)
