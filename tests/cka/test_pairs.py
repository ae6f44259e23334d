"""CKA of single layers and of layers in pairs: by hand, against whole Gram matrices, invariances, weights, bootstrap."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.cka import cka_map, cka_pairs, debiased_cka, linear_cka
from recoup.cka.clusters import cluster, draw_weights
from recoup.cka.tokens import choose
from recoup.errors import DataError, SourceError
from tests.cka.cases import (
    FLOAT32_PRODUCTS,
    column,
    gaussian,
    hsic_0,
    layers,
    reference,
    related,
    resampled_reference,
)  # fmt: skip


def test_debiased_by_hand() -> None:
    """x = (0,0,1,1), y = (0,1,0,1), n = 4. Off the diagonal K is 1 at tokens 3,4 only, L at 2,4 only.

    tr(KL) = 0, 1ᵀK1 = 1ᵀL1 = 2, K1 = (0,0,1,1), L1 = (0,1,0,1), so 1ᵀKL1 = 1:
    n(n−3) HSIC(x,y) = 0 + 2·2/(3·2) − 2/2·1 = −1/3; of x with itself: 2 + 4/6 − 2 = 2/3, of y too. CKA = −1/2.
    """
    assert debiased_cka(column(0, 0, 1, 1), column(0, 1, 0, 1)) == pytest.approx(-0.5)


def test_biased_by_hand() -> None:
    """Centred: Σxy = 1 − 4·½·¼ = ½, Σx² = 1, Σy² = 1 − 4·(¼)² = ¾; CKA = (½)² / (1·¾) = ⅓."""
    assert linear_cka(column(0, 0, 1, 1), column(0, 0, 0, 1)) == pytest.approx(1 / 3)


def test_two_and_three_tokens_by_hand() -> None:
    """Two tokens lie on a line: 1. Three: x = (−1,0,1), y = (1,−2,1) are centred, Σxy = 0: 0.
    With y = (0,0,3) − 1 = (−1,−1,2): Σxy = 3, Σx² = 2, Σy² = 6; 9/12."""
    assert linear_cka(column(5, 7), column(1, 0)) == pytest.approx(1)
    assert linear_cka(column(-1, 0, 1), column(1, -2, 1)) == pytest.approx(0)
    assert linear_cka(column(-1, 0, 1), column(0, 0, 3)) == pytest.approx(0.75)


def test_weighted_debiased_by_hand() -> None:
    """x = (1,1,0,0,0), y = (0,1,1,0,0), w = (2,1,1,1,1): n = 6. Off the diagonal K is 1 at tokens 1,2, L at 2,3.

    g = w/(n − 2w) = (1,¼,¼,¼,¼), 1 + Σg = 3. Row sums k = (w_2, w_1, 0,0,0) = (1,2,0,0,0), l = (0,1,1,0,0).
    xy = 0 − 2[¼·2·1 − (1 + ½)(¼ + ¼)/3] = −½. xx = 2·w_1w_2 − 2[1 + ¼·4 − (3/2)²/3] = 4 − 5/2 = 3/2.
    yy = 2 − 2[¼ + ¼ − (½)²/3] = 7/6. CKA = −½ / sqrt(3/2 · 7/6) = −1/√7. (Without weights it is −⅓.)
    """
    x, y = column(1, 1, 0, 0, 0), column(0, 1, 1, 0, 0)
    weights = torch.tensor([2.0, 1, 1, 1, 1])
    assert debiased_cka(x, y, weights_N=weights) == pytest.approx(-(7**-0.5))
    assert debiased_cka(x, y, weights_N=weights / 10) == pytest.approx(-(7**-0.5))  # only ratios matter
    assert debiased_cka(x, y) == pytest.approx(-1 / 3)


# the shapes take both ways: n < 3 D goes through Gram tiles, n >= 3 D through the features
@pytest.mark.parametrize(("n", "d", "e"), [(4, 3, 2), (30, 5, 9), (40, 100, 60), (200, 16, 16), (700, 300, 200)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_equals_gram_matrices(n: int, d: int, e: int, mean: float) -> None:
    X, Y = related(n, d, e)
    X, Y = X + mean, Y - mean
    assert debiased_cka(X, Y) == pytest.approx(reference(X, Y), abs=FLOAT32_PRODUCTS)
    assert linear_cka(X, Y) == pytest.approx(reference(X, Y, hsic_0), abs=FLOAT32_PRODUCTS)


@pytest.mark.parametrize(("n", "d", "e"), [(40, 100, 60), (200, 16, 16)])
def test_float64_features_keep_float64(n: int, d: int, e: int) -> None:
    X, Y = (features.double() for features in related(n, d, e))
    assert debiased_cka(X, Y) == pytest.approx(reference(X, Y), abs=1e-13)
    assert linear_cka(X, Y) == pytest.approx(reference(X, Y, hsic_0), abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    X, Y = (features.to(dtype) for features in related(60, 40, 20))
    assert debiased_cka(X, Y) == pytest.approx(reference(X, Y), abs=FLOAT32_PRODUCTS)


def test_large_mean_costs_nothing() -> None:
    """Peers give NaN or 0 here; 30 is where they were seen to fail."""
    for n in (64, 500):
        X, Y = related(n, 32, 32)
        for mean in (30.0, 1000.0):
            assert debiased_cka(X + mean, Y + mean) == pytest.approx(debiased_cka(X, Y), abs=1e-5)
            assert linear_cka(X + mean, Y + mean) == pytest.approx(linear_cka(X, Y), abs=1e-5)


@pytest.mark.parametrize("cka", [linear_cka, debiased_cka])
@pytest.mark.parametrize("n", [30, 200])
def test_invariances(cka, n: int) -> None:
    X, Y = related(n, 12, 20)
    rotation = torch.linalg.qr(gaussian(20, 20, seed=4)).Q
    shift = gaussian(20, seed=5)
    assert cka(X, Y @ rotation * 7 + shift) == pytest.approx(cka(X, Y), abs=FLOAT32_PRODUCTS)
    assert cka(Y, X) == pytest.approx(cka(X, Y), abs=FLOAT32_PRODUCTS)
    assert cka(X, X) == pytest.approx(1, abs=1e-12)
    assert cka(X, Y) < 0.9


@given(st.integers(4, 24), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_any_features_equal_gram_matrices(n: int, d: int, e: int, seed: int) -> None:
    X, Y = gaussian(n, d, seed=seed).double(), gaussian(n, e, seed=seed + 1).double()
    assert debiased_cka(X, Y) == pytest.approx(reference(X, Y), abs=1e-9)


def test_independent_features_are_zero_only_when_debiased() -> None:
    """Permutation null with n < D: the mean of 20 debiased values is 0 within 3 standard errors, about 0.01.

    Weighted, too. The biased form reads about D / (n + D) = 0.8.
    """
    X, Y = gaussian(50, 200, seed=6), gaussian(50, 200, seed=7)
    weights = torch.arange(1.0, 51)
    orders = [torch.randperm(50, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    for given_weights in (None, weights):
        values = torch.tensor([debiased_cka(X, Y[order], weights_N=given_weights) for order in orders])
        assert abs(values.mean()) < 3 * values.std() / 20**0.5 + 1e-3
        assert values.abs().max() < 0.1
    assert linear_cka(X, Y) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("cka", [linear_cka, debiased_cka])
def test_masked_is_filtered_even_where_pads_hold_garbage(cka) -> None:
    X, Y = related(50, 8, 6)
    mask = torch.arange(50) % 3 != 0
    X[~mask], Y[~mask] = float("nan"), 1e9
    assert cka(X, Y, mask) == cka(X[mask], Y[mask])
    assert cka(X, Y, weights_N=mask.float()) == pytest.approx(cka(X[mask], Y[mask]), abs=FLOAT32_PRODUCTS)
    weights = torch.arange(50.0)
    assert cka(X, Y, mask, weights) == cka(X[mask], Y[mask], weights_N=weights[mask])


@pytest.mark.parametrize("n", [20, 90])
def test_weights_are_repetition(n: int) -> None:
    """Of the biased form wholly; of the debiased one but for pairs of copies, which never meet."""
    X, Y = (features.double() + 3 for features in related(n, 8, 6))
    counts = torch.arange(n) % 4
    rows = torch.arange(n).repeat_interleave(counts)
    assert linear_cka(X, Y, weights_N=counts.double()) == pytest.approx(linear_cka(X[rows], Y[rows]), abs=1e-12)
    if n < 50:  # the reference holds all pairs of tokens
        found = debiased_cka(X, Y, weights_N=counts.double())
        assert found == pytest.approx(resampled_reference(X, Y, rows), abs=1e-12)
        assert found < debiased_cka(X[rows], Y[rows]) - 0.01  # copies that meet push it up


def test_features_inside_a_graph_and_of_mixed_types() -> None:
    X, Y = related(40, 8, 6)
    assert debiased_cka(X.requires_grad_(), Y) == debiased_cka(X.detach(), Y)
    assert debiased_cka(X, Y.double()) == pytest.approx(debiased_cka(X, Y), abs=FLOAT32_PRODUCTS)


def test_equal_weights_change_nothing() -> None:
    X, Y = (features.double() for features in related(40, 8, 6))
    weights = torch.full((40,), 0.3)
    assert debiased_cka(X, Y, weights_N=weights) == pytest.approx(debiased_cka(X, Y), abs=1e-12)
    assert linear_cka(X, Y, weights_N=weights) == pytest.approx(linear_cka(X, Y), abs=1e-12)


@pytest.mark.parametrize("n", [25, 120])
def test_pairs_are_the_maps_diagonal(n: int) -> None:
    X, Y = layers(n, 7, 12, 9, mean=5), layers(n, 4, 10, 16)
    mask = torch.arange(n) % 5 != 2
    found = cka_pairs(X, Y, mask)
    torch.testing.assert_close(found.value_L, cka_map(X, Y, mask).diagonal(), atol=FLOAT32_PRODUCTS, rtol=0)
    assert found.draws_RL is None
    assert cka_pairs(X, X).value_L.tolist() == pytest.approx([1, 1, 1], abs=1e-12)


# clusters of unequal size, their tokens not side by side, under names that are no counts
CLUSTERS = torch.tensor([7, -2, 7, 100, 100, -2, -2, 7, 7, 100, 3, 3, 3, 100, 100, 3, 7])


def test_bootstrap_equals_recomputing_on_the_drawn_prompts() -> None:
    X, Y = ([layer.double() for layer in layers(17, *widths, mean=2)] for widths in ((3, 20), (6, 2)))
    found = cka_pairs(X, Y, clusters_N=CLUSTERS, num_bootstrap=8, seed=3)
    assert found.value_L.tolist() == pytest.approx(cka_pairs(X, Y).value_L.tolist(), abs=1e-12)

    clusters = cluster(choose(X, None, None), CLUSTERS)
    names = CLUSTERS.unique()
    drawn_RC = draw_weights(clusters, 8, seed=3)[1:]
    assert found.draws_RL is not None
    for counts_C, draw_L in zip(drawn_RC, found.draws_RL, strict=True):
        assert counts_C.sum() == 4
        rows = torch.cat(
            [(name == CLUSTERS).nonzero()[:, 0].repeat(int(count)) for name, count in zip(names, counts_C, strict=True)]
        )
        expected = [resampled_reference(x, y, rows) for x, y in zip(X, Y, strict=True)]
        assert draw_L.tolist() == pytest.approx(expected, abs=1e-10)


def test_bootstrap_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 7 tokens cut clusters in two; draws 3 at a time."""
    X, Y = layers(50, 30), layers(50, 12, mean=4)
    mask, clusters = torch.arange(50) != 11, torch.arange(50) // 6
    whole = cka_pairs(X, Y, mask, clusters_N=clusters, num_bootstrap=10)
    monkeypatch.setattr("recoup.cka.sums.HALVED_TILE", 7)
    monkeypatch.setattr("recoup.cka.clusters.DRAWS_BYTES", 3 * 49 * 8)
    tiled = cka_pairs(X, Y, mask, clusters_N=clusters, num_bootstrap=10)
    assert whole.draws_RL is not None
    torch.testing.assert_close(tiled.draws_RL, whole.draws_RL, atol=FLOAT32_PRODUCTS, rtol=0)
    assert whole.draws_RL.std() > 0.001
    other = cka_pairs(X, Y, mask, clusters_N=clusters, num_bootstrap=10, seed=1)
    assert other.draws_RL is not None
    assert not torch.equal(other.draws_RL, whole.draws_RL)


def test_draws_of_unrelated_layers_stand_around_zero() -> None:
    """Copies that met would push every draw up: at n < D by about D / n."""
    X, Y = gaussian(60, 300, seed=8), gaussian(60, 300, seed=9)
    draws = cka_pairs([X], [Y], clusters_N=torch.arange(60) // 5, num_bootstrap=100).draws_RL
    assert draws is not None
    assert abs(draws.mean() - debiased_cka(X, Y)) < 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_features_are_named(bad: float) -> None:
    X, Y = layers(20, 4, 4), layers(20, 4, 4)
    Y[1][3, 2] = bad
    for num_bootstrap in (0, 2):
        with pytest.raises(SourceError, match="layer 1 of Y: NaN or infinity"):
            cka_pairs(X, Y, clusters_N=torch.arange(20) // 5, num_bootstrap=num_bootstrap)


def test_undefined_cka_is_refused() -> None:
    X, Y = related(20, 4, 4)
    with pytest.raises(DataError, match="at least 4 tokens, got 3"):
        debiased_cka(X[:3], Y[:3])
    with pytest.raises(DataError, match="layer 0 of Y do not vary"):
        debiased_cka(X, torch.full_like(Y, 0.1))
    with pytest.raises(DataError, match="at least 2 tokens, got 1"):
        linear_cka(X[:1], Y[:1])
    with pytest.raises(DataError, match="at least 2 tokens, got 0"):
        linear_cka(X[:0], Y[:0])
    with pytest.raises(DataError, match="layer 0 of X do not vary"):
        linear_cka(torch.full_like(X, 0.1), Y)
    with pytest.raises(DataError, match="overflow"):
        debiased_cka(X, Y * 1e25)
    with pytest.raises(DataError, match="overflow"):
        debiased_cka(X[:10], Y[:10] * 1e15)  # squares fit, their squares do not
    alone = torch.zeros_like(Y)
    alone[5] = 100  # one token that differs tells nothing of how tokens relate
    with pytest.raises(DataError, match="one token's alone"):
        debiased_cka(X, alone)
    with pytest.raises(DataError, match="layer 1 of X do not vary"):
        cka_pairs([X, torch.ones(20, 2)], [Y, Y])


def test_what_does_not_fit_is_refused() -> None:
    X, Y = related(20, 4, 4)
    with pytest.raises(DataError, match=r"same tokens, got shapes \[\(19, 4\), \(20, 4\)\]"):
        debiased_cka(X, Y[:19])
    with pytest.raises(DataError, match=r"mask of shape \(19,\) for 20 tokens"):
        debiased_cka(X, Y, torch.ones(19, dtype=torch.bool))
    with pytest.raises(DataError, match="negative"):
        debiased_cka(X, Y, weights_N=torch.arange(20.0) - 1)
    with pytest.raises(DataError, match="half of all weight"):
        debiased_cka(X, Y, weights_N=torch.tensor([19.0] + [1.0] * 19))
    with pytest.raises(DataError, match="one to one, got 1 and 2"):
        cka_pairs([X], [Y, Y])
    with pytest.raises(DataError, match="needs clusters_N"):
        cka_pairs([X], [Y], num_bootstrap=2)
    with pytest.raises(DataError, match=r"clusters_N of shape \(19,\) for 20 tokens"):
        cka_pairs([X], [Y], clusters_N=torch.arange(19), num_bootstrap=2)
    with pytest.raises(DataError, match="at least 2 clusters, got 1"):
        cka_pairs([X], [Y], clusters_N=torch.zeros(20, dtype=torch.long), num_bootstrap=2)
    with pytest.raises(DataError, match="too few tokens to compare"):
        cka_pairs([X[:4]], [Y[:4]], clusters_N=torch.arange(4), num_bootstrap=50)
