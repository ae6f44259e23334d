"""Linear CKA of two models' features, streamed: exact over any number of tokens, never an n × n matrix.

Linear CKA (1905.00414, section 3) is invariant to rotation, shift and isotropic scale. `linear_cka` is biased upward when n
is not much larger than the widths; `debiased_cka` uses HSIC_1 (Song et al. 2012, JMLR 13): for Gram matrices K, L with
zeroed diagonals, HSIC_1 = [tr(KL) + (1ᵀK1)(1ᵀL1)/((n−1)(n−2)) − 2/(n−2) · 1ᵀKL1] / (n(n−3)). With rows x_i, y_i, sums s_x, s_y
and squared norms a_i = ‖x_i‖², b_i = ‖y_i‖², its parts are moments of the features:

    tr(KL) = ‖XᵀY‖_F² − Σ a_i b_i          1ᵀK1 = ‖s_x‖² − Σ a_i
    1ᵀKL1 = s_xᵀ(XᵀY)s_y − s_xᵀ Σ b_i x_i − s_yᵀ Σ a_i y_i + Σ a_i b_i

Both forms ignore a constant added to every row, so the first batch's mean is subtracted before anything is squared: features
with a large mean lose no digits. Products are float32 (float64 for float64 features); sums over batches are float64.

    moments = None
    for X_ND, Y_NE in pairs:
        moments = update(moments, X_ND, Y_NE)
    print(debiased(moments))

Shapes: N tokens, D and E widths.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.errors import DataError, SourceError

MIN_TOKENS = 4  # HSIC_1 divides by n − 3
# of float32 products: variation below this share of ‖XᵀX‖_F² is rounding
RESOLUTION = torch.finfo(torch.float32).eps
ONE, OF_X, OF_Y = range(3)  # rows of the weights w: 1, a_i and b_i


@dataclass(frozen=True)
class Moments:
    """Everything CKA needs to know of the tokens seen so far, in float64; x and y are rows minus the pilot means."""

    num_tokens: int
    pilot_x_D: Float[Tensor, " D"]
    pilot_y_E: Float[Tensor, " E"]
    xy_DE: Float[Tensor, "D E"]  # Σ x_i y_iᵀ
    xx_DD: Float[Tensor, "D D"]
    yy_EE: Float[Tensor, "E E"]
    sums_x_3D: Float[Tensor, "3 D"]  # Σ w_i x_iᵀ with w_i = (1, a_i, b_i)
    sums_y_3E: Float[Tensor, "3 E"]
    weights_33: Float[Tensor, "3 3"]  # Σ w_i w_iᵀ


def update(
    moments: Moments | None,
    X_ND: Float[Tensor, "N D"],
    Y_NE: Float[Tensor, "N E"],
    mask_N: Bool[Tensor, " N"] | None = None,
    name: str = "features",
) -> Moments:
    """Moments with one more batch of tokens.

    Args:
        moments: of the batches before; None starts.
        X_ND: one model's features.
        Y_NE: the other's, at the same tokens.
        mask_N: true at tokens that count; the others are left out before anything else.
        name: says in an error whose features they are.

    Raises:
        SourceError: a feature is NaN or infinite.
    """
    if mask_N is not None:
        X_ND, Y_NE = X_ND[mask_N], Y_NE[mask_N]
    if moments is None:
        moments = _nothing(_mean(X_ND), _mean(Y_NE))
    X_ND, Y_NE = _minus(X_ND, moments.pilot_x_D), _minus(Y_NE, moments.pilot_y_E)
    a_N, b_N = _square_norms(X_ND), _square_norms(Y_NE)
    if not (a_N.isfinite().all() and b_N.isfinite().all()):
        raise SourceError(
            f"{name}: NaN or infinity in the hidden states, so CKA is undefined; the model is broken there"
        )
    w_3N = torch.stack([torch.ones_like(a_N), a_N, b_N])
    return Moments(
        moments.num_tokens + len(X_ND),
        moments.pilot_x_D,
        moments.pilot_y_E,
        xy_DE=moments.xy_DE + X_ND.T @ Y_NE,
        xx_DD=moments.xx_DD + X_ND.T @ X_ND,
        yy_EE=moments.yy_EE + Y_NE.T @ Y_NE,
        sums_x_3D=moments.sums_x_3D + w_3N.to(X_ND) @ X_ND,
        sums_y_3E=moments.sums_y_3E + w_3N.to(Y_NE) @ Y_NE,
        weights_33=moments.weights_33 + w_3N @ w_3N.T,
    )


def biased(moments: Moments) -> float:
    """Linear CKA = ‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) with centred columns, in [0, 1].

    Raises:
        DataError: no two tokens differ.
    """
    m, (s_x_D, s_y_E) = moments, (moments.sums_x_3D[ONE], moments.sums_y_3E[ONE])
    xy = (m.xy_DE - torch.outer(s_x_D, s_y_E) / m.num_tokens).square().sum()
    xx = (m.xx_DD - torch.outer(s_x_D, s_x_D) / m.num_tokens).square().sum()
    yy = (m.yy_EE - torch.outer(s_y_E, s_y_E) / m.num_tokens).square().sum()
    return _normalised(moments, xy, xx, yy)


def debiased(moments: Moments) -> float:
    """CKA from HSIC_1, in [−1, 1], with mean near 0 for independent features.

    Raises:
        DataError: fewer than 4 tokens, or no two pairs of tokens differ.
    """
    m = moments
    if m.num_tokens < MIN_TOKENS:
        raise DataError(f"debiased CKA needs at least {MIN_TOKENS} tokens, got {m.num_tokens}; give more prompts")
    xy = _hsic_1(m, m.xy_DE, OF_X, OF_Y)
    xx = _hsic_1(m, m.xx_DD, OF_X, OF_X)
    yy = _hsic_1(m, m.yy_EE, OF_Y, OF_Y)
    return _normalised(moments, xy, xx, yy)


def linear_cka(
    X_ND: Float[Tensor, "N D"], Y_NE: Float[Tensor, "N E"], mask_N: Bool[Tensor, " N"] | None = None
) -> float:
    """Biased linear CKA of whole features; masked tokens are left out.

    Raises:
        ValueError: as for `update` and `biased`.
    """
    return biased(update(None, X_ND, Y_NE, mask_N))


def debiased_cka(
    X_ND: Float[Tensor, "N D"], Y_NE: Float[Tensor, "N E"], mask_N: Bool[Tensor, " N"] | None = None
) -> float:
    """Debiased linear CKA of whole features; masked tokens are left out.

    Raises:
        ValueError: as for `update` and `debiased`.
    """
    return debiased(update(None, X_ND, Y_NE, mask_N))


def _nothing(pilot_x_D: Tensor, pilot_y_E: Tensor) -> Moments:
    zero = pilot_x_D.new_zeros
    D, E = len(pilot_x_D), len(pilot_y_E)
    return Moments(0, pilot_x_D, pilot_y_E, zero(D, E), zero(D, D), zero(E, E), zero(3, D), zero(3, E), zero(3, 3))


def _mean(X_ND: Tensor) -> Tensor:
    return X_ND.sum(0, dtype=torch.float64) / max(1, len(X_ND))


def _minus(X_ND: Tensor, pilot_D: Tensor) -> Tensor:
    """Shifted features in the type products are taken in; any pilot near the mean does, so it may be rounded too."""
    dtype = torch.promote_types(X_ND.dtype, torch.float32)
    return X_ND.to(dtype) - pilot_D.to(dtype)


def _square_norms(X_ND: Tensor) -> Tensor:
    return torch.linalg.vector_norm(X_ND, dim=1, dtype=torch.float64).square()


def _normalised(m: Moments, xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    """HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))."""
    for own, gram_DD in ((xx, m.xx_DD), (yy, m.yy_EE)):
        if not own > RESOLUTION * gram_DD.square().sum():  # also where float32 products overflowed to infinity
            raise DataError(
                f"CKA is undefined: the features of {m.num_tokens} tokens do not vary, or one token's alone, or overflow"
            )
    return float(xy / (xx.sqrt() * yy.sqrt()))


def _hsic_1(m: Moments, cross_DE: Tensor, left: int, right: int) -> Tensor:
    """n(n−3) HSIC_1 of two feature sets (OF_X or OF_Y each); the factor cancels in CKA."""
    n = m.num_tokens
    sums = {OF_X: m.sums_x_3D, OF_Y: m.sums_y_3E}
    s_D, s_E, sum_ab = sums[left][ONE], sums[right][ONE], m.weights_33[left, right]
    trace_KL = cross_DE.square().sum() - sum_ab
    total_K = s_D.square().sum() - m.weights_33[ONE, left]
    total_L = s_E.square().sum() - m.weights_33[ONE, right]
    total_KL = s_D @ cross_DE @ s_E - s_D @ sums[left][right] - s_E @ sums[right][left] + sum_ab
    return trace_KL + total_K * total_L / ((n - 1) * (n - 2)) - 2 / (n - 2) * total_KL
