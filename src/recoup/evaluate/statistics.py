"""Paired statistics over items: bootstrap intervals, exact McNemar, sign-flip permutation, Holm.

Pure functions of arrays. Models are paired by item: a resample draws items, and takes every model's score on them. Memory is
bounded: resamples are drawn in chunks.

Shapes: K models, I items, R resamples.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from recoup.results import Estimate

SIGNIFICANT = 0.05
INTERVAL = (2.5, 97.5)  # percentiles of a 95% interval
CHUNK_DRAWS = 4_000_000  # item draws held at once: 32 MB of indices

ScoresI = Float[np.ndarray, " I"]
ScoresKI = Float[np.ndarray, "K I"]
MeansRK = Float[np.ndarray, "R K"]
DrawsR = Float[np.ndarray, " R"]


def bootstrap_means(scores_KI: ScoresKI, num_bootstrap: int, seed: int) -> MeansRK:
    """Mean score of each model over items drawn with replacement; a resample is the same items for every model."""
    num_items = scores_KI.shape[1]
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK_DRAWS // num_items)
    means_RK = np.empty((num_bootstrap, len(scores_KI)))
    for start in range(0, num_bootstrap, chunk):
        rows = means_RK[start : start + chunk]
        items = generator.integers(num_items, size=(len(rows), num_items))
        for column, scores_I in zip(rows.T, scores_KI, strict=True):
            column[:] = scores_I[items].mean(axis=1)
    return means_RK


def estimate(value: float, draws_R: DrawsR) -> Estimate:
    """`value` with the percentile interval of its bootstrap draws (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.percentile(draws_R, INTERVAL)
    return Estimate(value=float(value), low=float(low), high=float(high))


def recovered_fraction(value: float, reference_R: DrawsR, degraded_R: DrawsR, recovered_R: DrawsR) -> Estimate:
    """(recovered − degraded) / (reference − degraded) with the interval of that ratio over joint resamples.

    Only meaningful where the damage is significant; resamples without any damage have no ratio and are left out.
    """
    damage_R = reference_R - degraded_R
    some = damage_R != 0
    return estimate(value, (recovered_R - degraded_R)[some] / damage_R[some])


def paired_p_value(first_I: ScoresI, second_I: ScoresI, num_resamples: int, seed: int) -> float:
    """Two-sided p of no difference: exact McNemar when every score is 0 or 1, else a sign-flip permutation test."""
    if np.isin(np.concatenate([first_I, second_I]), (0, 1)).all():
        return mcnemar_exact(int((first_I > second_I).sum()), int((first_I < second_I).sum()))
    return sign_flip(first_I - second_I, num_resamples, seed)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided binomial p: of the items that one model alone gets right, each is either's with chance 1/2.

    p = min(1, 2 · sum_{i ≤ min(b, c)} C(b + c, i) / 2^(b + c)), exact in integers.
    """
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    term, total = 1, 1
    for i in range(fewer):
        term = term * (discordant - i) // (i + 1)  # C(n, i + 1) from C(n, i): the division leaves no rest
        total += term
    return min(1.0, 2 * total / 2**discordant)


def sign_flip(differences_I: ScoresI, num_resamples: int, seed: int) -> float:
    """Two-sided permutation p: under no difference, each item's difference is as likely with the other sign.

    The observed signs count as one of the resamples, so p is never 0 (Phipson and Smyth 2010).
    """
    generator = np.random.default_rng(seed)
    observed = abs(differences_I.sum())
    rounding = 1e-12 * np.abs(differences_I).sum()  # equal sums may differ in their last bits
    chunk = max(1, CHUNK_DRAWS // len(differences_I))
    extreme = 0
    for start in range(0, num_resamples, chunk):
        count = min(chunk, num_resamples - start)
        signs = generator.integers(2, size=(count, len(differences_I)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences_I) >= observed - rounding).sum())
    return (1 + extreme) / (1 + num_resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p, in the order given.

    The k-th smallest of m is multiplied by m − k + 1; an adjusted value is never below that of a smaller p, nor above 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
