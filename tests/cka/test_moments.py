"""Streamed CKA equals that of whole features, which tests/cka/test_pairs.py checks."""

import pytest
import torch
from torch import Tensor

from recoup.cka import Moments, biased, debiased, debiased_cka, linear_cka, update
from recoup.errors import DataError, SourceError
from tests.cka.cases import FLOAT32_PRODUCTS, hsic_0, reference, related


def streamed(X: Tensor, Y: Tensor, size: int, weights: Tensor | None = None) -> Moments:
    moments = None
    for start in range(0, len(X), size):
        batch = slice(start, start + size)
        moments = update(moments, X[batch], Y[batch], weights_N=None if weights is None else weights[batch])
    assert moments is not None
    return moments


@pytest.mark.parametrize(("n", "d", "e"), [(4, 3, 2), (30, 5, 9), (40, 100, 60), (200, 16, 16)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("size", [7, 1000])
def test_streaming_is_whole(n: int, d: int, e: int, mean: float, size: int) -> None:
    X, Y = related(n, d, e)
    X, Y = X + mean, Y - mean
    moments = streamed(X, Y, size)
    assert debiased(moments) == pytest.approx(reference(X, Y), abs=FLOAT32_PRODUCTS)
    assert biased(moments) == pytest.approx(reference(X, Y, hsic_0), abs=FLOAT32_PRODUCTS)


def test_float64_features_keep_float64() -> None:
    X, Y = (features.double() for features in related(40, 100, 60))
    moments = streamed(X, Y, 7)
    assert debiased(moments) == pytest.approx(debiased_cka(X, Y), abs=1e-13)
    assert biased(moments) == pytest.approx(linear_cka(X, Y), abs=1e-13)
    assert debiased(streamed(X, X, 7)) == pytest.approx(1, abs=1e-12)


def test_weights_are_repetition() -> None:
    X, Y = (features.double() + 3 for features in related(40, 8, 6))
    counts = torch.arange(40) % 4
    rows = torch.arange(40).repeat_interleave(counts)
    moments = streamed(X, Y, 7, counts.double())
    assert biased(moments) == pytest.approx(linear_cka(X[rows], Y[rows]), abs=1e-12)
    with pytest.raises(DataError, match="cannot be streamed with weights"):
        debiased(moments)


def test_masked_is_filtered_even_where_pads_hold_garbage() -> None:
    X, Y = related(50, 8, 6)
    mask = torch.arange(50) % 3 != 0
    X[~mask], Y[~mask] = float("nan"), 1e9
    assert debiased(update(None, X, Y, mask)) == debiased(update(None, X[mask], Y[mask]))


def test_undefined_cka_is_refused() -> None:
    X, Y = related(20, 4, 4)
    with pytest.raises(DataError, match="at least 4 tokens, got 3"):
        debiased(update(None, X[:3], Y[:3]))
    with pytest.raises(DataError, match="Y, 20 tokens, do not vary"):
        debiased(update(None, X, torch.full_like(Y, 0.1)))
    with pytest.raises(DataError, match="do not vary"):
        biased(update(None, X[:1], Y[:1]))
    with pytest.raises(DataError, match="overflow"):
        debiased(update(None, X, Y * 1e25))


def test_update_leaves_its_argument_alone() -> None:
    X, Y = related(20, 4, 4)
    before = update(None, X, Y)
    value = debiased(before)
    update(before, Y, X)
    assert debiased(before) == value


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_features_are_named(bad: float) -> None:
    X, Y = related(20, 4, 4)
    moments = update(None, X, Y)
    Y[3, 2] = bad
    with pytest.raises(SourceError, match="block 3: NaN or infinity"):
        update(moments, X, Y, name="block 3")
