"""Linear CKA of two models' features, streamed: exact over any number of tokens, which need not be kept.

With rows x_i, y_i, sums s_x, s_y and squared norms a_i = ‖x_i‖², b_i = ‖y_i‖², the parts of HSIC_1 (Song et al. 2012, JMLR 13)
for Gram matrices K, L with zeroed diagonals,

    n(n−3) HSIC_1 = tr(KL) + (1ᵀK1)(1ᵀL1)/((n−1)(n−2)) − 2/(n−2) · 1ᵀKL1

are moments of the features:

    tr(KL) = ‖XᵀY‖_F² − Σ a_i b_i          1ᵀK1 = ‖s_x‖² − Σ a_i
    1ᵀKL1 = s_xᵀ(XᵀY)s_y − s_xᵀ Σ b_i x_i − s_yᵀ Σ a_i y_i + Σ a_i b_i

Both forms of CKA ignore a constant added to every row, so the first batch's mean is subtracted before anything is squared:
features with a large mean lose no digits. Products are float32 (float64 for float64 features); sums over batches are float64.

    moments = None
    for X_ND, Y_NE in pairs:
        moments = update(moments, X_ND, Y_NE)
    print(debiased(moments))

Weights stream for the biased form alone: the debiased one divides by n − 2 w_i inside its sums (`hsic`), and n is not known
before the end. `debiased_cka` takes them.

Shapes: N tokens, D and E widths.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.cka.hsic import root
from recoup.cka.tokens import MIN_TOKENS, choose, mean, square_norms
from recoup.errors import DataError, SourceError

ONE, OF_X, OF_Y = range(3)  # rows of v: 1 (with weights their roots), a_i and b_i


@dataclass(frozen=True)
class Moments:
    """Everything CKA needs to know of the tokens seen so far, in float64.

    x and y are rows minus the pilot means, times the roots of their weights.
    """

    num_tokens: int
    pilot_x_D: Float[Tensor, " D"]
    pilot_y_E: Float[Tensor, " E"]
    xy_DE: Float[Tensor, "D E"]  # Σ x_i y_iᵀ
    xx_DD: Float[Tensor, "D D"]
    yy_EE: Float[Tensor, "E E"]
    sums_x_3D: Float[Tensor, "3 D"]  # Σ v_i x_iᵀ with v_i = (1, a_i, b_i)
    sums_y_3E: Float[Tensor, "3 E"]
    values_33: Float[Tensor, "3 3"]  # Σ v_i v_iᵀ
    weighted: bool = False


def update(
    moments: Moments | None,
    X_ND: Float[Tensor, "N D"],
    Y_NE: Float[Tensor, "N E"],
    mask_N: Bool[Tensor, " N"] | None = None,
    name: str = "features",
    weights_N: Float[Tensor, " N"] | None = None,
) -> Moments:
    """Moments with one more batch of tokens.

    Args:
        moments: of the batches before; None starts.
        X_ND: one model's features.
        Y_NE: the other's, at the same tokens.
        mask_N: true at tokens that count; the others are left out before anything else.
        name: says in an error whose features they are.
        weights_N: how much each token counts, 0 or more; for `biased` alone.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: a weight is negative, or mask or weights are not one a token.
    """
    tokens = choose([X_ND, Y_NE], mask_N, weights_N)
    if tokens.rows_n is not None:
        X_ND, Y_NE = X_ND[tokens.rows_n], Y_NE[tokens.rows_n]
    if moments is None:
        moments = _nothing(mean(X_ND), mean(Y_NE))
    X_ND, Y_NE = _minus(X_ND, moments.pilot_x_D), _minus(Y_NE, moments.pilot_y_E)
    roots_N = tokens.weights_n.sqrt().to(X_ND.device)
    if tokens.weighted:
        X_ND, Y_NE = X_ND * roots_N.to(X_ND)[:, None], Y_NE * roots_N.to(Y_NE)[:, None]
    a_N, b_N = square_norms(X_ND), square_norms(Y_NE)
    if not (a_N.isfinite().all() and b_N.isfinite().all()):
        raise SourceError(
            f"{name}: NaN or infinity in the hidden states, so CKA is undefined; the model is broken there"
        )
    v_3N = torch.stack([roots_N, a_N, b_N])
    return Moments(
        moments.num_tokens + len(X_ND),
        moments.pilot_x_D,
        moments.pilot_y_E,
        xy_DE=moments.xy_DE + X_ND.T @ Y_NE,
        xx_DD=moments.xx_DD + X_ND.T @ X_ND,
        yy_EE=moments.yy_EE + Y_NE.T @ Y_NE,
        sums_x_3D=moments.sums_x_3D + v_3N.to(X_ND) @ X_ND,
        sums_y_3E=moments.sums_y_3E + v_3N.to(Y_NE) @ Y_NE,
        values_33=moments.values_33 + v_3N @ v_3N.T,
        weighted=moments.weighted or tokens.weighted,
    )


def biased(moments: Moments) -> float:
    """Linear CKA = ‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) with centred columns, in [0, 1].

    Raises:
        DataError: no two tokens differ.
    """
    m, (s_x_D, s_y_E) = moments, (moments.sums_x_3D[ONE], moments.sums_y_3E[ONE])
    weight = m.values_33[ONE, ONE]
    xy = (m.xy_DE - torch.outer(s_x_D, s_y_E) / weight).square().sum()
    xx = (m.xx_DD - torch.outer(s_x_D, s_x_D) / weight).square().sum()
    yy = (m.yy_EE - torch.outer(s_y_E, s_y_E) / weight).square().sum()
    return _normalised(moments, xy, xx, yy)


def debiased(moments: Moments) -> float:
    """CKA from HSIC_1, in [−1, 1], with mean near 0 for independent features.

    Raises:
        DataError: fewer than 4 tokens, weighted ones, or no two pairs of tokens differ.
    """
    m = moments
    if m.weighted:
        raise DataError(
            "debiased CKA cannot be streamed with weights; give all tokens to debiased_cka or cka_map at once"
        )
    if m.num_tokens < MIN_TOKENS:
        raise DataError(f"debiased CKA needs at least {MIN_TOKENS} tokens, got {m.num_tokens}; give more prompts")
    xy = _hsic_1(m, m.xy_DE, OF_X, OF_Y)
    xx = _hsic_1(m, m.xx_DD, OF_X, OF_X)
    yy = _hsic_1(m, m.yy_EE, OF_Y, OF_Y)
    return _normalised(moments, xy, xx, yy)


def _nothing(pilot_x_D: Tensor, pilot_y_E: Tensor) -> Moments:
    zero = pilot_x_D.new_zeros
    D, E = len(pilot_x_D), len(pilot_y_E)
    return Moments(0, pilot_x_D, pilot_y_E, zero(D, E), zero(D, D), zero(E, E), zero(3, D), zero(3, E), zero(3, 3))


def _minus(X_ND: Tensor, pilot_D: Tensor) -> Tensor:
    """Shifted features in the type products are taken in; any pilot near the mean does, so it may be rounded too."""
    dtype = torch.promote_types(X_ND.dtype, torch.float32)
    return X_ND.to(dtype) - pilot_D.to(dtype)


def _normalised(m: Moments, xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))."""
    root_x, root_y = (
        root(own[None], gram_DD.square().sum()[None], [f"{side}, {m.num_tokens} tokens,"])
        for own, gram_DD, side in ((xx, m.xx_DD, "X"), (yy, m.yy_EE, "Y"))
    )
    return float(xy / (root_x * root_y))


def _hsic_1(m: Moments, cross_DE: Tensor, left: int, right: int) -> Tensor:
    """n(n−3) HSIC_1 of two feature sets (OF_X or OF_Y each); the factor cancels in CKA."""
    n = m.num_tokens
    sums = {OF_X: m.sums_x_3D, OF_Y: m.sums_y_3E}
    s_D, s_E, sum_ab = sums[left][ONE], sums[right][ONE], m.values_33[left, right]
    trace_KL = cross_DE.square().sum() - sum_ab
    total_K = s_D.square().sum() - m.values_33[ONE, left]
    total_L = s_E.square().sum() - m.values_33[ONE, right]
    total_KL = s_D @ cross_DE @ s_E - s_D @ sums[left][right] - s_E @ sums[right][left] + sum_ab
    return trace_KL + total_K * total_L / ((n - 1) * (n - 2)) - 2 / (n - 2) * total_KL
