"""CKA under Gaussian kernels: against whole kernel matrices, and its limit, linear CKA."""

import pytest
import torch
from torch import Tensor

from recoup.cka import debiased_cka, linear_cka, rbf_cka
from recoup.errors import ConfigError, DataError
from tests.cka.cases import cka_of, column, gaussian, hsic_0, hsic_1, related


def kernel(X: Tensor, bandwidth: float) -> Tensor:
    distances = torch.cdist(X.double(), X.double(), compute_mode="donot_use_mm_for_euclid_dist")
    first, second = torch.triu_indices(len(X), len(X), 1)
    return (-distances.square() / (2 * (bandwidth * distances[first, second].median()) ** 2)).exp()


@pytest.mark.parametrize("n", [4, 9, 60])
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("debiased", "hsic"), [(True, hsic_1), (False, hsic_0)])
def test_equals_kernel_matrices(n: int, bandwidth: float, debiased: bool, hsic) -> None:
    X, Y = related(n, 6, 9)
    X = X + 30
    expected = cka_of(kernel(X, bandwidth), kernel(Y, bandwidth), hsic)
    assert rbf_cka(X, Y, bandwidth=bandwidth, debiased=debiased) == pytest.approx(expected, abs=2e-5)


def test_several_tiles_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = (features.double() for features in related(40, 6, 9))
    whole = rbf_cka(X, Y)
    monkeypatch.setattr("recoup.cka.sums.HALVED_TILE", 7)
    assert rbf_cka(X, Y) == pytest.approx(whole, abs=1e-12)


def test_wide_kernel_is_linear_and_equal_features_are_one() -> None:
    """exp(−d²/2s²) tends to 1 − d²/2s², whose off-centre part is x_i·x_j / s²."""
    X, Y = (features.double() for features in related(50, 6, 9))
    assert rbf_cka(X, Y, bandwidth=1000) == pytest.approx(debiased_cka(X, Y), abs=1e-4)
    assert rbf_cka(X, Y, bandwidth=1000, debiased=False) == pytest.approx(linear_cka(X, Y), abs=1e-4)
    assert rbf_cka(X, X) == pytest.approx(1, abs=1e-12)


def test_invariances_null_and_mask() -> None:
    X, Y = related(60, 6, 9)
    rotation = torch.linalg.qr(gaussian(9, 9, seed=4)).Q
    assert rbf_cka(X, Y @ rotation * 7 + 2) == pytest.approx(rbf_cka(X, Y), abs=1e-5)
    assert abs(rbf_cka(gaussian(60, 200, seed=1), gaussian(60, 200, seed=2))) < 0.1
    mask = torch.arange(60) % 3 != 0
    assert rbf_cka(X, Y, mask_N=mask) == rbf_cka(X[mask], Y[mask])


def test_median_by_hand() -> None:
    """x = 0, 1, 3, 7: distances 1 2 3 4 6 7, the lower middle one is 3: K_12 = exp(−1/18) with bandwidth 1."""
    x = column(0, 1, 3, 7)
    expected = (-(x - x.T).double().square() / 18).exp()
    y = column(0, 2, 1, 5)  # distances 1 1 2 3 4 5: 2
    other = (-(y - y.T).double().square() / 8).exp()
    assert rbf_cka(x, y) == pytest.approx(cka_of(expected, other), abs=1e-5)


def test_errors() -> None:
    X, Y = related(20, 4, 4)
    with pytest.raises(ConfigError, match="bandwidth must be above 0"):
        rbf_cka(X, Y, bandwidth=0)
    Y[:15] = 1  # 105 of 190 pairs
    with pytest.raises(DataError, match="tokens of Y are equal"):
        rbf_cka(X, Y)
    with pytest.raises(DataError, match="at least 4 tokens"):
        rbf_cka(X[:3], Y[:3])
