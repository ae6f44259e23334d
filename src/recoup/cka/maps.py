"""The layer × layer map: CKA of every layer of one model with every layer of another, exact over all tokens.

Depths and widths may differ. See `sums` for how it is worked out and `hsic` for what weights mean. Memory: a copy of the
features in float32 (bf16: half of that), and 64 MB at most. Largest error against float64, measured, 30 × 30 layers of width 576:

    products   Gaussian features, 2,048 tokens   SmolLM2-135M and its int3 self, 1,000 tokens   with its sink tokens
    fp32       1e-7                              1e-6                                           4e-6
    bf16       1e-5                              4e-4                                           8e-4

Shapes: N tokens, D and E widths, L and M layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.cka.hsic import RESOLUTION, own_row_part, root, row_part, shares
from recoup.cka.sums import Sums, pair_sums
from recoup.cka.tokens import Features, Products, Space, Tokens, check_enough, choose, prepare


def cka_map(
    X: Sequence[Float[Tensor, "N _"]],
    Y: Sequence[Float[Tensor, "N _"]],
    mask_N: Bool[Tensor, " N"] | None = None,
    *,
    weights_N: Float[Tensor, " N"] | None = None,
    debiased: bool = True,
    products: Products = "fp32",
) -> Float[Tensor, "L M"]:
    """Linear CKA of every layer of X (rows) with every layer of Y (columns).

    Args:
        X: one model's layers, each (N, D_l).
        Y: the other's at the same tokens, each (N, E_m).
        mask_N: true at tokens that count.
        weights_N: how much each counts, 0 or more.
        debiased: HSIC_1, in [−1, 1]; otherwise HSIC_0, in [0, 1]; both to rounding.
        products: float32, or features rounded to bfloat16 and multiplied by the processor's bfloat16 unit.

    Returns:
        The map in float64.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: layers of different numbers of tokens, too few tokens, or a layer whose tokens do not vary.
    """
    tokens = choose([*X, *Y], mask_N, weights_N)
    check_enough(tokens, debiased)
    space = Space()
    ready_X, ready_Y = prepare(X, tokens, "X", products, space), prepare(Y, tokens, "Y", products, space)
    return cka(*hsic(ready_X, ready_Y, tokens, space, debiased), resolution(products, tokens.number))


def hsic(X: Features, Y: Features, tokens: Tokens, space: Space, debiased: bool = True) -> tuple[Sums, Sums]:
    """HSIC of every two layers and of each with itself, and Σ_ij K_ij L_ij, which says what rounding may come to.

    HSIC_1 is times n(n−3), HSIC_0 times (n−1)².
    """
    (a_LN, b_MN), (k_LN, l_MN) = (X.norms_Ln, Y.norms_Ln), (X.rows_Ln, Y.rows_Ln)
    pairs = pair_sums(X, Y, space)
    whole = pairs.plus(Sums(a_LN @ b_MN.T, a_LN.square().sum(1), b_MN.square().sum(1)))
    if not debiased:
        k_LN, l_MN = k_LN + a_LN, l_MN + b_MN
    g_N = shares(tokens.weights_n, debiased)
    rows = Sums(row_part(k_LN, l_MN, g_N), own_row_part(k_LN, g_N), own_row_part(l_MN, g_N))
    return (pairs if debiased else whole).plus(rows, -1.0), whole


def cka(hsic: Sums, sizes: Sums, resolution: float, first: int = 0) -> Float[Tensor, "L M"]:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) of every two layers.

    Args:
        hsic: of a map, debiased or not.
        sizes: Σ_ij K_ij L_ij.
        resolution: as in `root`.
        first: the first layer's number, for errors.

    Raises:
        DataError: a layer's tokens do not vary.
    """
    root_L = root(hsic.xx_L, sizes.xx_L, _names("X", first, len(hsic.xx_L)), resolution)
    root_M = root(hsic.yy_M, sizes.yy_M, _names("Y", first, len(hsic.yy_M)), resolution)
    return hsic.xy_LM / torch.outer(root_L, root_M)


def resolution(products: Products, num_tokens: int) -> float:
    """The share of Σ K_ij² below which variation is rounding."""
    # one lone token's row is rounded on its own, and the others' mean, 1/n of it, does not take that out
    return RESOLUTION if products == "fp32" else max(RESOLUTION, torch.finfo(torch.bfloat16).eps / num_tokens)


def _names(side: str, first: int, number: int) -> list[str]:
    return [f"layer {layer} of {side}" for layer in range(first, first + number)]
