"""What CKA misses, by hand."""

import pytest
import torch

from recoup.cka import effective_rank, procrustes_distance, relative_l2
from recoup.errors import DataError, SourceError
from tests.cka.cases import column, gaussian, related


def test_relative_l2_by_hand() -> None:
    """‖(3,4) − (0,0)‖ over both rows: difference (0,3),(4,0) of size 5; the reference has size 10."""
    assert relative_l2(torch.tensor([[6.0, 3], [4, 8]]), torch.tensor([[6.0, 0], [0, 8]])) == pytest.approx(0.5)
    X, _ = related(20, 4, 4)
    assert relative_l2(X, X) == 0
    assert relative_l2(3 * X, X) == pytest.approx(2)
    with pytest.raises(DataError, match="equal shapes"):
        relative_l2(X, X[:, :2])
    with pytest.raises(DataError, match="all 0"):
        relative_l2(X, 0 * X)


def test_procrustes_by_hand() -> None:
    """x = (−1,0,1)/√2, y = (1,−2,1)/√6: xᵀy = 0, so 1. y = (−1,−1,2)/√6: xᵀy = 3/√12, so 1 − √3/2."""
    assert procrustes_distance(column(-1, 0, 1), column(1, -2, 1)) == pytest.approx(1)
    assert procrustes_distance(column(-1, 0, 1), column(0, 0, 3)) == pytest.approx(1 - 3**0.5 / 2)


def test_procrustes_ignores_rotation_shift_and_scale() -> None:
    X, Y = related(40, 12, 20)
    rotation = torch.linalg.qr(gaussian(20, 20, seed=4)).Q
    distance = procrustes_distance(X, Y)
    assert 0.05 < distance < 0.95
    assert procrustes_distance(X, Y @ rotation * 7 + 30) == pytest.approx(distance, abs=1e-5)
    assert procrustes_distance(Y, X) == pytest.approx(distance, abs=1e-12)
    assert procrustes_distance(Y, Y @ rotation) == pytest.approx(0, abs=1e-6)
    assert procrustes_distance(X, torch.cat([X, torch.zeros(40, 3)], 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [8, 400])
def test_effective_rank_of_equal_directions(n: int) -> None:
    """k orthonormal, centred columns: k equal singular values, entropy log k, rank k; rotated into more dimensions as well."""
    ones = torch.ones(n, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, gaussian(n, 5, seed=1).double()], 1)).Q[:, 1:]
    wide = basis @ torch.linalg.qr(gaussian(20, 20, seed=2).double()).Q[:5]
    # a rank's rounding: of n or 20 singular values a dozen are sqrt(1e-16) instead of 0
    assert effective_rank(basis) == pytest.approx(5, abs=1e-5)
    assert effective_rank(3 * wide + 100) == pytest.approx(5, abs=1e-4)


def test_effective_rank_by_hand() -> None:
    """Rows ±(2,0), ±(0,1): singular values √8, √2, shares ⅔, ⅓: exp(⅔ log 1.5 + ⅓ log 3) = 3 / 2^(2/3)."""
    X = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    assert effective_rank(X) == pytest.approx(3 / 2 ** (2 / 3))
    assert effective_rank(column(1, 2, 5)) == pytest.approx(1)


@pytest.mark.parametrize("measure", [lambda X: procrustes_distance(X, X), effective_rank])
def test_errors(measure) -> None:
    with pytest.raises(DataError, match="do not vary"):
        measure(torch.full((5, 3), 0.1))
    with pytest.raises(SourceError, match="NaN or infinity"):
        measure(torch.tensor([[1.0, float("nan")], [0, 0]]))
