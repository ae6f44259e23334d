"""CKA of layers paired one to one (layer l with layer l), with a bootstrap over clusters of tokens, and of a single pair.

Tokens of one prompt are not independent, so whole prompts are drawn, with replacement. A draw in which cluster c comes up w_c
times gives each of its tokens the weight w_c: `hsic` says what that means; above all, a token never meets its own copies, whose
agreement would push every draw towards 1. `clusters` makes draws without touching the features again.

Shapes: N tokens, D and E widths, L pairs of layers, R draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from recoup.cka.clusters import cluster, draw_weights, drawn
from recoup.cka.hsic import RESOLUTION
from recoup.cka.maps import cka, hsic
from recoup.cka.tokens import Space, Tokens, centred, check_enough, choose
from recoup.errors import DataError


@dataclass(frozen=True)
class CkaPairs:
    """Debiased CKA of each pair of layers, in float64."""

    value_L: Float[Tensor, " L"]
    draws_RL: (
        Float[Tensor, "R L"] | None
    )  # of resampled clusters, the same clusters for all layers; null: not asked for


def cka_pairs(
    X: Sequence[Float[Tensor, "N _"]],
    Y: Sequence[Float[Tensor, "N _"]],
    mask_N: Bool[Tensor, " N"] | None = None,
    *,
    clusters_N: Integer[Tensor, " N"] | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
) -> CkaPairs:
    """Debiased CKA of layer l of X with layer l of Y; exact over all tokens.

    Args:
        X: one model's layers, each (N, D_l).
        Y: the other's partners at the same tokens, each (N, E_l).
        mask_N: true at tokens that count.
        clusters_N: the prompt of each token, as any whole numbers; needed for a bootstrap.
        num_bootstrap: R, draws of as many clusters as there are.
        seed: of the draws.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: numbers of layers or tokens differ, too few tokens, a layer whose tokens do not vary, or a bootstrap of
            clusters that were not given or are too small.
    """
    if len(X) != len(Y):
        raise DataError(f"cka_pairs compares layers one to one, got {len(X)} and {len(Y)}; cka_map takes any numbers")
    tokens = choose([*X, *Y], mask_N, None)
    check_enough(tokens)
    if num_bootstrap == 0:
        values = [pair(x_ND, y_NE, tokens, layer=index) for index, (x_ND, y_NE) in _both(X, Y)]
        return CkaPairs(torch.tensor(values, dtype=torch.float64), None)
    if clusters_N is None:
        raise DataError("cka_pairs: a bootstrap needs clusters_N, the prompt of each token")
    if clusters_N.shape != (len(X[0]),):
        raise DataError(
            f"cka_pairs: clusters_N of shape {tuple(clusters_N.shape)} for {len(X[0])} tokens; give one a token"
        )
    clusters = cluster(tokens, clusters_N)
    weights_RC = draw_weights(clusters, num_bootstrap, seed)
    found_LR = [drawn((x_ND, y_NE), clusters, weights_RC, index) for index, (x_ND, y_NE) in _both(X, Y)]
    found_RL = torch.stack(found_LR, dim=1)
    return CkaPairs(found_RL[0], found_RL[1:])


def linear_cka(
    X_ND: Float[Tensor, "N D"],
    Y_NE: Float[Tensor, "N E"],
    mask_N: Bool[Tensor, " N"] | None = None,
    weights_N: Float[Tensor, " N"] | None = None,
) -> float:
    """Biased linear CKA of whole features, in [0, 1]; a token of weight 3 is one repeated 3 times.

    Args:
        X_ND: one model's features.
        Y_NE: the other's, at the same tokens.
        mask_N: true at tokens that count.
        weights_N: how much each counts, 0 or more.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: no two tokens differ, or shapes do not fit.
    """
    tokens = choose([X_ND, Y_NE], mask_N, weights_N)
    check_enough(tokens, debiased=False)
    return pair(X_ND, Y_NE, tokens, debiased=False)


def debiased_cka(
    X_ND: Float[Tensor, "N D"],
    Y_NE: Float[Tensor, "N E"],
    mask_N: Bool[Tensor, " N"] | None = None,
    weights_N: Float[Tensor, " N"] | None = None,
) -> float:
    """Debiased linear CKA of whole features, in [−1, 1]; a pair of tokens (i, j), i ≠ j, counts w_i w_j (see `hsic`).

    Args:
        X_ND: one model's features.
        Y_NE: the other's, at the same tokens.
        mask_N: true at tokens that count.
        weights_N: how much each counts, 0 or more; only their ratios matter.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: fewer than 4 tokens, one with half of all weight, no two that differ, or shapes that do not fit.
    """
    tokens = choose([X_ND, Y_NE], mask_N, weights_N)
    check_enough(tokens)
    return pair(X_ND, Y_NE, tokens)


def pair(X_ND: Tensor, Y_NE: Tensor, tokens: Tokens, debiased: bool = True, layer: int = 0) -> float:
    """CKA of one pair of layers; its number is for errors."""
    X, Y = (centred(side, tokens, f"layer {layer} of {name}") for side, name in ((X_ND, "X"), (Y_NE, "Y")))
    return float(cka(*hsic(X, Y, tokens, Space(), debiased), RESOLUTION, layer))


def _both(X: Sequence[Tensor], Y: Sequence[Tensor]) -> enumerate[tuple[Tensor, Tensor]]:
    return enumerate(zip(X, Y, strict=True))
