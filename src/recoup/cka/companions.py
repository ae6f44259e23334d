"""What CKA misses. It ignores scale and rotation, and weighs directions by their variance, so that a lost faint one goes unseen.

All are worked out in float64: small eigenvalues drown in float32 products, where 576 of them would add to a rank.

Shapes: N tokens, D and E widths.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import DataError, SourceError


def relative_l2(X_ND: Float[Tensor, "N D"], Y_ND: Float[Tensor, "N D"]) -> float:
    """‖X − Y‖_F / ‖Y‖_F: how far X is from Y, which it should equal.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: shapes differ, or Y is 0.
    """
    if X_ND.shape != Y_ND.shape:
        raise DataError(
            f"relative_l2 needs equal shapes, not {tuple(X_ND.shape)} and {tuple(Y_ND.shape)}; procrustes_distance does not"
        )
    X_ND, Y_ND = _wide(X_ND), _wide(Y_ND)
    size = torch.linalg.vector_norm(Y_ND)
    if size == 0:
        raise DataError("relative_l2: the features compared with are all 0")
    return float(torch.linalg.vector_norm(X_ND - Y_ND) / size)


def procrustes_distance(X_ND: Float[Tensor, "N D"], Y_NE: Float[Tensor, "N E"]) -> float:
    """Half the squared distance of centred features of norm 1 after the best rotation: 1 − ‖XᵀY‖_*, in [0, 1].

    0: equal up to rotation, reflection, shift and scale; 1: no direction of one goes with one of the other. The narrower side is
    padded with zeros, which changes no singular value. Orthogonal Procrustes distance (2108.01661, section 2), halved.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: numbers of tokens differ, or no two tokens do.
    """
    if len(X_ND) != len(Y_NE):
        raise DataError(f"procrustes_distance compares the same tokens, not {len(X_ND)} and {len(Y_NE)}")
    X_ND, Y_NE = _unit(X_ND), _unit(Y_NE)
    distance = 1 - float(torch.linalg.svdvals(X_ND.T @ Y_NE).sum())
    return max(0.0, distance)  # ‖XᵀY‖_* <= ‖X‖ ‖Y‖ = 1, but for rounding


def effective_rank(X_ND: Float[Tensor, "N D"]) -> float:
    """How many dimensions centred features use, from 1 to min(N − 1, D).

    The exponential of the entropy of the singular values' shares (Roy & Vetterli 2007).

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: no two tokens differ.
    """
    X_ND = _unit(X_ND)
    square = X_ND.T @ X_ND if X_ND.shape[0] >= X_ND.shape[1] else X_ND @ X_ND.T
    values = torch.linalg.eigvalsh(square).clamp_min(0).sqrt()  # none is negative but by rounding
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _wide(X_ND: Tensor) -> Tensor:
    X_ND = X_ND.double()
    if not bool(X_ND.isfinite().all()):
        raise SourceError("NaN or infinity in the hidden states, so they cannot be compared; the model is broken there")
    return X_ND


def _unit(X_ND: Tensor) -> Tensor:
    """Centred, of Frobenius norm 1."""
    X_ND = _wide(X_ND)
    centred_ND = X_ND - X_ND.mean(0)
    size = torch.linalg.vector_norm(centred_ND)
    # a mean's rounding, a few parts in 1e16 of the features, is no variation
    if not bool(size > 16 * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(X_ND)):
        raise DataError("the features do not vary from token to token, so there is nothing to compare")
    return centred_ND / size
