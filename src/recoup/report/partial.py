"""Correlations of two gains with the training step partialled out, and their intervals: pure functions of arrays.

Everything that a repair heals grows with the step, so any two gains correlate whether or not one tells of the other. So the step
is partialled out within each run, which takes what differs between runs with it: what is correlated is both gains less their
least-squares fit of the step, its logarithm and the square of that. Recovery is fast at first and then slow, and a straight
line leaves that bend in both: curves 1 − exp(−step / τ) with independent noise of 3% then correlate at 0.76, without it at −0.01
(means over made runs of 12 looks, τ from 15 to 90 of 120 steps). Where nothing of a gain is left there is no correlation.

Looks of one run resemble each other, so they are not resampled as if they were independent (Davison and Hinkley 1997, sections
3.8 and 8.2): runs are drawn with replacement, whole, or in each run drawn blocks of consecutive looks. What is drawn are the
ranks, and what the fit left, of all points: fits to the few different looks of a resample would follow them too well. So
draws do not know what the fit cost, nor how few they are: intervals are widened as those of a regression are, and are never
narrower than those of independent points. On made runs without any connection 95% intervals of the partial Spearman correlation
left nought out at most 6 times in 100 (1 to 16 runs of 6 to 24 looks; 1 or 2 times for 3 to 8 runs).

Shapes: N points, C columns, K functions of the step, R resamples.
"""

import math
from collections.abc import Sequence

import numpy as np

from recoup.results import Estimate

Rows = np.ndarray  # (N, 3): step, first gain, second gain
MEASURES = ("pearson", "spearman", "partial_pearson", "partial_spearman")  # in the order of `pairs_of`
NUM_BOOTSTRAP = 2000  # as in a diagnosis
VALID_SHARE = 0.9  # of the resamples must have a correlation, or it may be anything
NOTHING = 1e-9  # share of its size that is taken for rounding
INTERVAL = (2.5, 97.5)  # percentiles
NORMAL = 1.959964  # of which these are the normal distribution's
MIN_FREEDOM = 3  # degrees of freedom: with fewer a correlation may be anything


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse_N]


def step_functions(step_N: np.ndarray, *, bend: bool) -> np.ndarray:
    """What is fitted, (N, K): a constant and the step; for a `bend` its logarithm and the square of that as well."""
    log_N = np.log1p(step_N)
    return np.stack([np.ones_like(step_N), step_N, *([log_N, log_N**2] if bend else [])], axis=1)


def residuals(values_NC: np.ndarray, functions_NK: np.ndarray) -> np.ndarray:
    """What is left of each column once its least-squares fit is taken out; exactly 0 where that is rounding."""
    left_NC = values_NC - functions_NK @ np.linalg.lstsq(functions_NK, values_NC, rcond=None)[0]
    rounding_C = np.linalg.norm(left_NC, axis=0) <= NOTHING * np.linalg.norm(values_NC, axis=0)
    return np.where(rounding_C, 0.0, left_NC)


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's r; NaN where one of them does not vary."""
    pair_N2 = np.stack([x_N, y_N], axis=1)
    centred_N2 = pair_N2 - pair_N2.mean(axis=0)
    sizes = np.linalg.norm(centred_N2, axis=0)
    if (sizes <= NOTHING * np.linalg.norm(pair_N2, axis=0)).any():
        return math.nan
    return float(centred_N2[:, 0] @ centred_N2[:, 1] / sizes.prod())


def pairs_of(runs: Sequence[Rows], *, bend: bool) -> tuple[list[np.ndarray], ...]:
    """What is correlated, for each of the `MEASURES` two columns by run; the step goes out within each run."""
    gains = [run[:, 1:] for run in runs]
    left = [residuals(run[:, 1:], step_functions(run[:, 0], bend=bend)) for run in runs]
    return gains, _ranked(gains), left, _ranked(left)


def measures(runs: Sequence[Rows], *, bend: bool) -> list[float]:
    """The four `MEASURES` over the points of all runs; NaN where there is none."""
    return [pearson(*np.concatenate(parts).T) for parts in pairs_of(runs, bend=bend)]


def estimates_of(runs: Sequence[Rows], *, bend: bool, block: int | None, seed: int) -> dict[str, Estimate | None]:
    """The four `MEASURES` with their 95% intervals, by name; null where nothing varies.

    Args:
        runs: rows by run.
        bend: whether a curve on the step goes out, or a line.
        block: consecutive rows of a run that are drawn together; null: runs are drawn whole.
        seed: of the resampling.
    """
    num_points = sum(map(len, runs))
    found: dict[str, Estimate | None] = {}
    for name, parts in zip(MEASURES, pairs_of(runs, bend=bend), strict=True):
        cost = (2 + 2 * bend) * len(runs) if name.startswith("partial") else 1  # the mean at least
        width = _widening(len(runs), 1) if block is None else _widening(num_points, cost)
        draws_R = _draws(parts, block, np.random.default_rng(seed))
        found[name] = _estimate(pearson(*np.concatenate(parts).T), draws_R, width, _least(num_points, cost))
    return found


def student(freedom: int) -> float:
    """The 97.5% point of Student's t, by the first terms of its series in 1 / freedom (Abramowitz and Stegun 26.7.5)."""
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _widening(num_points: int, cost: int) -> float:
    """What an interval is too narrow by that comes from draws of so many points, or runs, after a fit; infinite for too few."""
    freedom = num_points - cost - 1  # of a correlation of residuals, one less than theirs
    if freedom < MIN_FREEDOM:
        return math.inf
    return math.sqrt(num_points / (num_points - cost)) * student(freedom) / NORMAL


def _least(num_points: int, cost: int) -> float:
    """Half the width, on Fisher's scale, of the interval of as many independent normal points: looks tell no more than they."""
    freedom = num_points - cost - 2
    return NORMAL / math.sqrt(freedom) if freedom > 0 else math.inf


def _ranked(parts: list[np.ndarray]) -> list[np.ndarray]:
    ranked_N2 = np.apply_along_axis(ranks, 0, np.concatenate(parts))
    return np.split(ranked_N2, np.cumsum([len(part) for part in parts])[:-1])


def _draws(parts: list[np.ndarray], block: int | None, generator: np.random.Generator) -> np.ndarray:
    """Pearson's r in each resample, from sums of products; NaN where one of the two does not vary."""
    together = np.concatenate(parts)
    mean, spread = together.mean(axis=0), np.maximum(together.std(axis=0), np.finfo(float).tiny)
    drawn_RS = generator.integers(len(parts), size=(NUM_BOOTSTRAP, len(parts)))  # which run stands at each place
    sums_R6 = np.zeros((NUM_BOOTSTRAP, 6))
    for index, part in enumerate(parts):
        x_N, y_N = ((part - mean) / spread).T
        products_N6 = np.stack([np.ones_like(x_N), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N], axis=1)
        for place_R in drawn_RS.T:
            here_R = place_R == index
            sums_R6[here_R] += _summed(products_N6, block, int(here_R.sum()), generator)
    n, x, y, xx, yy, xy = sums_R6.T
    spread_R = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
    return np.where(spread_R > NOTHING, xy / n - x * y / n**2, np.nan) / np.sqrt(np.maximum(spread_R, NOTHING))


def _summed(products_N6: np.ndarray, block: int | None, count: int, generator: np.random.Generator) -> np.ndarray:
    """Sums over `count` resamples of a run: itself, or as many rows in blocks, the end going on at the start."""
    if block is None:
        return np.broadcast_to(products_N6.sum(axis=0), (count, 6))
    num_rows = len(products_N6)
    starts = generator.integers(num_rows, size=(count, -(-num_rows // block), 1))
    places = (starts + np.arange(block)).reshape(count, -1)[:, :num_rows] % num_rows
    return products_N6[places].sum(axis=1)


def _estimate(value: float, draws_R: np.ndarray, width: float, least: float) -> Estimate | None:
    """The interval of the draws on Fisher's scale, where a correlation is nearly normal.

    Args:
        value: the correlation.
        draws_R: those of the resamples.
        width: the interval is so many times as wide as that of the draws,
        least: and reaches so far to either side at least.

    Returns:
        From −1 to 1 where the points are too few to say; null where there is no correlation.
    """
    draws_R = draws_R[np.isfinite(draws_R)]
    if math.isnan(value):
        return None
    if math.isinf(width) or len(draws_R) < VALID_SHARE * NUM_BOOTSTRAP:
        return Estimate(value=value, low=-1, high=1)
    limit = 1 - NOTHING  # r = 1 is infinitely far on that scale
    middle = math.atanh(min(limit, max(-limit, value)))
    ends = np.arctanh(np.clip(np.percentile(draws_R, INTERVAL), -limit, limit))
    below, above = (width * (ends - middle)).tolist()
    return Estimate(value=value, low=math.tanh(middle + min(below, -least)), high=math.tanh(middle + max(above, least)))
