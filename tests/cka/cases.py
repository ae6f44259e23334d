"""Features, and CKA worked out from whole Gram matrices in float64."""

import torch
from torch import Tensor

FLOAT32_PRODUCTS = 2e-6  # what float32 products may cost


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related(n: int, d: int, e: int) -> tuple[Tensor, Tensor]:
    """Features that share part of what they say."""
    X, noise, mix = gaussian(n, d, seed=1), gaussian(n, e, seed=2), gaussian(d, e, seed=3)
    return X, X @ mix / d**0.5 + noise


def layers(n: int, *widths: int, mean: float = 0.0) -> list[Tensor]:
    """Layers of these widths, each related to the one before it."""
    found = [gaussian(n, widths[0], seed=10)]
    for number, width in enumerate(widths[1:]):
        mix = gaussian(found[-1].shape[1], width, seed=20 + number)
        found.append(found[-1] @ mix / len(mix) ** 0.5 + 0.5 * gaussian(n, width, seed=30 + number))
    return [layer + mean for layer in found]


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def hsic_1(K: Tensor, L: Tensor) -> Tensor:
    """HSIC_1 of Song et al. 2012, term by term."""
    n = len(K)
    K, L, one = K.clone(), L.clone(), torch.ones(n, dtype=torch.float64)
    K.fill_diagonal_(0), L.fill_diagonal_(0)
    total = (K @ L).trace() + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def hsic_0(K: Tensor, L: Tensor) -> Tensor:
    """tr(KHLH) / (n − 1)² of Gretton et al. 2005."""
    n = len(K)
    H = torch.eye(n, dtype=torch.float64) - 1 / n
    return (K @ H @ L @ H).trace() / (n - 1) ** 2


def cka_of(K: Tensor, L: Tensor, hsic=hsic_1) -> float:
    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


def reference(X: Tensor, Y: Tensor, hsic=hsic_1) -> float:
    X, Y = X.double(), Y.double()
    return cka_of(X @ X.T, Y @ Y.T, hsic)


def resampled_reference(X: Tensor, Y: Tensor, rows: Tensor) -> float:
    """Debiased CKA of tokens that may come up several times, where a token never meets its copies.

    The inner product of Gram matrices over all pairs of different tokens, after f_i + f_j has been taken out of K by least squares.
    """
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    kept = rows[first] != rows[second]
    first, second = first[kept], second[kept]
    ends = torch.zeros(len(first), len(rows), dtype=torch.float64)
    pairs = torch.arange(len(first))
    ends[pairs, first], ends[pairs, second] = 1, 1

    def grams(Z: Tensor) -> Tensor:
        Z = Z[rows].double()
        gram = (Z @ Z.T)[first, second]
        return gram - ends @ (torch.linalg.pinv(ends) @ gram)

    K, L = grams(X), grams(Y)
    return float(K @ L / (K.norm() * L.norm()))
