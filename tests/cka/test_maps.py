"""The layer × layer map against whole Gram matrices, both ways of working it out, masks, weights, and 16-bit products."""

import pytest
import torch

from recoup.cka import cka_map, linear_cka
from recoup.cka.sums import grams_are_cheaper, tiles
from recoup.errors import DataError, SourceError
from tests.cka.cases import FLOAT32_PRODUCTS, gaussian, hsic_0, hsic_1, layers, reference

BF16 = 1e-3  # of features rounded to 8 bits, at these few tokens


@pytest.mark.parametrize("n", [12, 60, 400])
@pytest.mark.parametrize(("debiased", "hsic"), [(True, hsic_1), (False, hsic_0)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_any_depths_and_widths(n: int, debiased: bool, hsic, mean: float) -> None:
    """3 layers against 2, of five widths; Gram tiles serve below about 70 tokens, the features above."""
    X, Y = layers(n, 8, 20, 11, mean=mean), layers(n, 16, 5, mean=-mean)
    found_LM = cka_map(X, Y, debiased=debiased)
    assert found_LM.dtype == torch.float64
    expected = torch.tensor([[reference(x, y, hsic) for y in Y] for x in X], dtype=torch.float64)
    torch.testing.assert_close(found_LM, expected, atol=3 * FLOAT32_PRODUCTS, rtol=0)


def test_the_cheaper_way_by_hand() -> None:
    """2 layers of width 10 on each side: Gram n²·40, features 2n(20·20 + 4·100) = 1600 n; they meet at n = 40 = D (L + 2)."""
    assert grams_are_cheaper(39, [10, 10], [10, 10])
    assert not grams_are_cheaper(40, [10, 10], [10, 10])


@pytest.mark.parametrize("n", [1, 2, 5, 100, 513])
def test_tiles_cover_each_pair_once(n: int) -> None:
    """Of a symmetric matrix: tiles on the diagonal once, the others with their mirror image."""
    seen = torch.zeros(n, n)
    for rows, columns in tiles(n, 10, 4):
        seen[rows, columns] += 1
        if rows != columns:
            seen[columns, rows] += 1
    assert (seen == 1).all()


def test_tiles_fit_the_buffer() -> None:
    """60 layers of 4 bytes: 64 MiB / 240 = 279,620 entries, tiles of at most 528 × 528; 256 is the most.

    600 layers: 27,962 entries, 167 × 167; 25 blocks of 164 are 4,100. bfloat16 is widened in the buffer, so no more fit.
    """
    assert max(rows.stop - rows.start for rows, _ in tiles(4096, 60, 4)) == 256
    assert max(rows.stop - rows.start for rows, _ in tiles(4096, 600, 4)) == 164
    assert max(rows.stop - rows.start for rows, _ in tiles(4096, 600, 2)) == 164
    assert max(rows.stop - rows.start for rows, _ in tiles(4096, 600, 8)) == 118  # 8 bytes: 118 × 118, 35 blocks


def test_minibatches_are_halved() -> None:
    """Of 256 tokens in float32 two blocks of 128: three tiles instead of four quarters."""
    assert [rows.stop - rows.start for rows, _ in tiles(256, 60, 4)] == [128, 128, 128]
    assert [rows.stop - rows.start for rows, _ in tiles(256, 60, 2)] == [256]


def test_several_tiles_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = layers(50, 40, 30), layers(50, 60)
    whole_LM = cka_map(X, Y)
    monkeypatch.setattr("recoup.cka.sums.HALVED_TILE", 7)
    torch.testing.assert_close(cka_map(X, Y), whole_LM, atol=FLOAT32_PRODUCTS, rtol=0)


@pytest.mark.parametrize("n", [40, 400])
def test_masked_is_filtered_and_weights_are_repetition(n: int) -> None:
    X, Y = ([layer.double() for layer in side] for side in (layers(n, 8, 20), layers(n, 16, 5, mean=9)))
    mask = torch.arange(n) % 3 != 0
    kept = cka_map([x[mask] for x in X], [y[mask] for y in Y])
    for layer in (*X, *Y):
        layer[~mask] = float("nan")
    assert torch.equal(cka_map(X, Y, mask), kept)

    counts = torch.arange(n) % 4 * mask
    rows = torch.arange(n).repeat_interleave(counts)
    repeated = [[linear_cka(x[rows], y[rows]) for y in Y] for x in X]
    found = cka_map(X, Y, weights_N=counts.double(), debiased=False)
    torch.testing.assert_close(found, torch.tensor(repeated, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("n", [60, 400])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_bf16_products(n: int, mean: float) -> None:
    X, Y = layers(n, 64, 32, mean=mean), layers(n, 48, 40, mean=mean)
    before = torch.get_float32_matmul_precision()
    found_LM = cka_map(X, Y, products="bf16")
    torch.testing.assert_close(found_LM, cka_map(X, Y), atol=BF16, rtol=0)
    assert not torch.equal(found_LM, cka_map(X, Y))
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("products", ["fp32", "bf16"])
def test_null_is_zero_below_the_width(products) -> None:
    """4 × 4 independent layers, n = 80, D = 200: values of standard error about 1/n, mean of 16 within 3/(4n) of 0."""
    X, Y = ([gaussian(80, 200, seed=seed + 50 * side) for seed in range(4)] for side in (1, 2))
    found_LM = cka_map(X, Y, products=products)
    assert found_LM.abs().max() < 0.06
    assert abs(found_LM.mean()) < 0.01
    assert cka_map(X, Y, products=products, debiased=False).min() > 0.6  # D / (n + D) = 0.71


@pytest.mark.parametrize("products", ["fp32", "bf16"])
@pytest.mark.parametrize("n", [20, 400])
def test_what_is_undefined_is_named(products, n: int) -> None:
    X, Y = layers(n, 8, 6), layers(n, 7, 5, 9)
    alone = torch.zeros(n, 4)
    alone[3] = gaussian(4, seed=1)
    for flat in (torch.full((n, 3), 0.1), alone):
        with pytest.raises(DataError, match="features of layer 2 of Y do not vary"):
            cka_map(X, [*Y[:2], flat], products=products)
    X[1][7, 0] = float("inf")
    with pytest.raises(SourceError, match="layer 1 of X: NaN or infinity"):
        cka_map(X, Y, products=products)
    with pytest.raises(DataError, match="same tokens"):
        cka_map([], [])
