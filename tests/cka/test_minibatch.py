"""Minibatch CKA: an average of HSIC_1, never of CKA."""

import pytest
import torch

from recoup.cka import MinibatchCka, cka_map
from recoup.errors import DataError
from tests.cka.cases import FLOAT32_PRODUCTS, column, hsic_1, layers


def streamed(X, Y, size: int, **options) -> MinibatchCka:
    minibatches = MinibatchCka(**options)
    for xs, ys in zip(
        zip(*[x.split(size) for x in X], strict=True), zip(*[y.split(size) for y in Y], strict=True), strict=True
    ):
        minibatches.update(xs, ys)
    return minibatches


def test_by_hand() -> None:
    """Minibatch 1: x = (0,0,1,1), y = (0,1,0,1), 4 HSIC_1 = −1/3, 2/3, 2/3 (xy, xx, yy) as in test_pairs.
    Minibatch 2: x = y = (0,0,1,1): 2/3 each. Sums 1/3, 4/3, 4/3: CKA ¼. (The mean of CKAs, −½ and 1, is ¼ as well, so a
    third: x = y = (0,0,2,2) · with K 16 times as large in HSIC: 32/3 each. Sums 11, 12, 12: 11/12; mean of CKAs ½.)"""
    first, second = column(0, 0, 1, 1), column(0, 1, 0, 1)
    minibatches = MinibatchCka()
    for x, y in ((first, second), (first, first), (2 * first, 2 * first)):
        minibatches.update([x], [y])
    assert minibatches.map().item() == pytest.approx(11 / 12)
    assert minibatches.num_tokens == 12


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_equals_mean_hsic_of_gram_matrices(mean: float) -> None:
    """Also where the last minibatch is smaller, and a mean of 30 costs nothing."""
    X, Y = layers(100, 8, 40, mean=mean), layers(100, 16, 5, 7, mean=mean)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for row, x in enumerate(X):
        for number, y in enumerate(Y):
            batches = [
                [part @ part.T for part in pair]
                for pair in zip(x.double().split(32), y.double().split(32), strict=True)
            ]
            xy, xx, yy = (torch.stack([hsic_1(*pair) for pair in pairs]).sum() for pairs in (
                batches, [(K, K) for K, _ in batches], [(L, L) for _, L in batches]
            ))  # fmt: skip
            expected[row, number] = xy / (xx * yy).sqrt()
    torch.testing.assert_close(streamed(X, Y, 32).map(), expected, atol=10 * FLOAT32_PRODUCTS, rtol=0)
    torch.testing.assert_close(streamed(X, Y, 32, products="bf16").map(), expected, atol=3e-3, rtol=0)


def test_one_minibatch_is_the_map_and_many_are_near_it() -> None:
    X, Y = layers(1024, 8, 12), layers(1024, 16, 5)
    exact = cka_map(X, Y)
    torch.testing.assert_close(streamed(X, Y, 1024).map(), exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(streamed(X, Y, 64).map(), exact, atol=0.02, rtol=0)


def test_masked_is_filtered() -> None:
    X, Y = layers(30, 8, 12), layers(30, 16)
    mask = torch.arange(30) % 4 != 1
    found, expected = MinibatchCka(), MinibatchCka()
    expected.update([x[mask] for x in X], [y[mask] for y in Y])
    for layer in (*X, *Y):
        layer[~mask] = float("nan")
    found.update(X, Y, mask)
    assert torch.equal(found.map(), expected.map())


def test_errors() -> None:
    minibatches = MinibatchCka()
    with pytest.raises(DataError, match="no minibatch was given"):
        minibatches.map()
    with pytest.raises(DataError, match="at least 4 tokens, got 3"):
        minibatches.update(layers(3, 2), layers(3, 2))
    minibatches.update(layers(5, 2, 3), layers(5, 2))
    with pytest.raises(DataError, match="1 × 1 layers after 2 × 1"):
        minibatches.update(layers(5, 2), layers(5, 2))
