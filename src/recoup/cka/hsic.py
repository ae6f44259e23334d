"""HSIC from sums over pairs of tokens, and CKA from HSIC.

HSIC_1 (Song et al. 2012, JMLR 13) is the inner product of two Gram matrices without diagonals, once everything of the form
f_i + f_j has been taken out of them (U-centring; Székely & Rizzo 2014): that is what makes it unbiased and blind to shifts.
With weights a pair (i, j), i ≠ j, counts w_i w_j in this inner product, and a token never meets itself, whatever it weighs:

    ⟨K, L⟩ = Σ_{i≠j} w_i w_j (K_ij − f_i − f_j) L_ij,   f such that Σ_{j≠i} w_j (K_ij − f_i − f_j) = 0 for every i
           = Σ_{i≠j} w_i w_j K_ij L_ij − 2 [Σ g_i k_i l_i − Σ g_i k_i · Σ g_i l_i / (1 + Σ g_i)]

with n = Σ w_i, row sums k_i = Σ_{j≠i} w_j K_ij, l_i likewise, and g_i = w_i / (n − 2 w_i). With all weights equal this is
n(n−3) HSIC_1 to the letter. It depends on weights only through their ratios, is 0 on average for independent features and, for
any weights, a multiple of the true HSIC on average, the same multiple in all three terms of CKA. Copies of one token would not
do: they pair with one another, so that HSIC_1 counts the token's norm as agreement and is biased upward.

The biased HSIC_0 has pairs i = j too, in the sums and in k_i, and g_i = w_i / n; a token of weight 3 is one repeated 3 times.

Shapes: L and M layers, N tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import DataError

# of float32 products: variation below this share of ‖K‖² is rounding
RESOLUTION = 16 * torch.finfo(torch.float32).eps


def shares(weights_N: Float[Tensor, " N"], debiased: bool = True) -> Float[Tensor, " N"]:
    """g_i = w_i / (n − 2 w_i) of HSIC_1, no weight being half of the sum; w_i / n of HSIC_0."""
    return weights_N / (weights_N.sum() - 2 * weights_N) if debiased else weights_N / weights_N.sum()


def row_part(k_LN: Float[Tensor, "L N"], l_MN: Float[Tensor, "M N"], g_N: Float[Tensor, " N"]) -> Float[Tensor, "L M"]:
    """What centring takes out of Σ w_i w_j K_ij L_ij, for every two layers; all float64.

    Args:
        k_LN: row sums Σ w_j K_ij, over the same j as in the sum they are taken out of: with j = i for HSIC_0, without for HSIC_1.
        l_MN: the other layers'.
        g_N: from `shares`.
    """
    both_LM = (k_LN * g_N) @ l_MN.T
    return 2 * (both_LM - torch.outer(k_LN @ g_N, l_MN @ g_N) / (1 + g_N.sum()))


def own_row_part(k_LN: Float[Tensor, "L N"], g_N: Float[Tensor, " N"]) -> Float[Tensor, " L"]:
    """`row_part` of every layer with itself."""
    return 2 * (k_LN.square() @ g_N - (k_LN @ g_N).square() / (1 + g_N.sum()))


def root(
    own_L: Float[Tensor, " L"],
    size_L: Float[Tensor, " L"],
    names: Sequence[str],
    resolution: float = RESOLUTION,
) -> Float[Tensor, " L"]:
    """sqrt(HSIC(X, X)), which CKA is divided by.

    Args:
        own_L: HSIC of features with themselves.
        size_L: Σ K_ij², which says what rounding may come to.
        names: whose features, for the error.
        resolution: the share of the size below which variation is rounding.

    Raises:
        DataError: no two tokens differ.
    """
    flat_L = ~(own_L > resolution * size_L)  # not <=, so that NaN, from products that overflowed, is caught as well
    if bool(flat_L.any()):
        raise DataError(
            f"CKA is undefined: the features of {names[int(flat_L.nonzero()[0])]} do not vary, or one token's alone, "
            "or overflow"
        )
    return own_L.sqrt()
