"""CKA against hand-derived values, explicit Gram matrices, and its invariances."""

import pytest
import torch
from torch import Tensor

from recoup.cka import Moments, debiased, debiased_cka, linear_cka, update
from recoup.errors import DataError, SourceError

FLOAT32_PRODUCTS = 1e-6  # what float32 products may cost


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related(n: int, d: int, e: int) -> tuple[Tensor, Tensor]:
    """Features that share part of what they say."""
    X, noise, mix = gaussian(n, d, seed=1), gaussian(n, e, seed=2), gaussian(d, e, seed=3)
    return X, X @ mix / d**0.5 + noise


def gram_reference(X: Tensor, Y: Tensor) -> float:
    """HSIC_1 of Song et al. 2012, term by term, in float64 with n × n matrices."""

    def hsic(A: Tensor, B: Tensor) -> Tensor:
        n = len(A)
        K, L, one = A @ A.T, B @ B.T, torch.ones(n, dtype=torch.float64)
        K.fill_diagonal_(0), L.fill_diagonal_(0)
        total = (K @ L).trace() + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))

    X, Y = X.double(), Y.double()
    return float(hsic(X, Y) / (hsic(X, X) * hsic(Y, Y)).sqrt())


def streamed(X: Tensor, Y: Tensor, size: int) -> Moments:
    moments = None
    for x, y in zip(X.split(size), Y.split(size), strict=True):
        moments = update(moments, x, y)
    assert moments is not None
    return moments


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def test_debiased_by_hand() -> None:
    """x = (0,0,1,1), y = (0,1,0,1), n = 4. Off the diagonal K is 1 at tokens 3,4 only, L at 2,4 only.

    tr(KL) = 0, 1ᵀK1 = 1ᵀL1 = 2, K1 = (0,0,1,1), L1 = (0,1,0,1), so 1ᵀKL1 = 1:
    n(n−3) HSIC(x,y) = 0 + 2·2/(3·2) − 2/2·1 = −1/3; of x with itself: 2 + 4/6 − 2 = 2/3, of y too. CKA = −1/2.
    """
    assert debiased_cka(column(0, 0, 1, 1), column(0, 1, 0, 1)) == pytest.approx(-0.5)


def test_biased_by_hand() -> None:
    """Centred: Σxy = 1 − 4·½·¼ = ½, Σx² = 1, Σy² = 1 − 4·(¼)² = ¾; CKA = (½)² / (1·¾) = ⅓."""
    assert linear_cka(column(0, 0, 1, 1), column(0, 0, 0, 1)) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("n", "d", "e"), [(4, 3, 2), (30, 5, 9), (40, 100, 60), (200, 16, 16)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_equals_gram_matrices(n: int, d: int, e: int, mean: float) -> None:
    X, Y = related(n, d, e)
    X, Y = X + mean, Y - mean
    assert debiased_cka(X, Y) == pytest.approx(gram_reference(X, Y), abs=FLOAT32_PRODUCTS)
    assert debiased(streamed(X, Y, 7)) == pytest.approx(gram_reference(X, Y), abs=FLOAT32_PRODUCTS)


def test_float64_features_keep_float64() -> None:
    X, Y = (features.double() for features in related(40, 100, 60))
    assert debiased_cka(X, Y) == pytest.approx(gram_reference(X, Y), abs=1e-13)


def test_large_mean_costs_nothing() -> None:
    """Peers give NaN or 0 here; 30 is where they were seen to fail."""
    X, Y = related(500, 32, 32)
    for mean in (30.0, 1000.0):
        assert debiased_cka(X + mean, Y + mean) == pytest.approx(debiased_cka(X, Y), abs=1e-5)
        assert linear_cka(X + mean, Y + mean) == pytest.approx(linear_cka(X, Y), abs=1e-5)


@pytest.mark.parametrize("cka", [linear_cka, debiased_cka])
def test_invariances(cka) -> None:
    X, Y = related(60, 12, 20)
    rotation = torch.linalg.qr(gaussian(20, 20, seed=4)).Q
    shift = gaussian(20, seed=5)
    assert cka(X, Y @ rotation * 7 + shift) == pytest.approx(cka(X, Y), abs=FLOAT32_PRODUCTS)
    assert cka(Y, X) == pytest.approx(cka(X, Y), abs=FLOAT32_PRODUCTS)
    assert cka(X, X) == pytest.approx(1, abs=1e-12)
    assert cka(X, Y) < 0.9


def test_independent_features_are_zero_only_when_debiased() -> None:
    """Permutation null with n < D: the mean of 20 debiased values is 0 within 3 standard errors, about 0.01."""
    X, Y = gaussian(50, 200, seed=6), gaussian(50, 200, seed=7)
    orders = [torch.randperm(50, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    values = torch.tensor([debiased_cka(X, Y[order]) for order in orders])
    assert abs(values.mean()) < 3 * values.std() / 20**0.5 + 1e-3
    assert values.abs().max() < 0.1
    assert linear_cka(X, Y) > 0.7


def test_masked_is_filtered_even_where_pads_hold_garbage() -> None:
    X, Y = related(50, 8, 6)
    mask = torch.arange(50) % 3 != 0
    X[~mask], Y[~mask] = float("nan"), 1e9
    assert debiased_cka(X, Y, mask) == debiased_cka(X[mask], Y[mask])
    assert linear_cka(X, Y, mask) == linear_cka(X[mask], Y[mask])


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


def test_undefined_cka_is_refused() -> None:
    X, Y = related(20, 4, 4)
    with pytest.raises(DataError, match="at least 4 tokens, got 3"):
        debiased_cka(X[:3], Y[:3])
    with pytest.raises(DataError, match="do not vary"):
        debiased_cka(X, torch.full_like(Y, 0.1))
    with pytest.raises(DataError, match="do not vary"):
        linear_cka(X[:1], Y[:1])
    with pytest.raises(DataError, match="overflow"):
        debiased_cka(X, Y * 1e25)
    alone = torch.zeros_like(Y)
    alone[5] = 100  # one token that differs tells nothing of how tokens relate
    with pytest.raises(DataError, match="one token's alone"):
        debiased_cka(X, alone)
