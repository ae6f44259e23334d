"""Bootstrap draws of CKA over clusters of tokens, from sums by cluster; exact, and without the features.

With tokens' weights w_c(i), where w_c says how often cluster c was drawn, HSIC_1 (see `hsic`) needs

    Σ_{i≠j} w_i w_j K_ij L_ij = Σ_cd w_c w_d S_cd     S_cd = Σ_{i∈c, j∈d, i≠j} K_ij L_ij
    k_i = Σ_{j≠i} w_j K_ij    = Σ_c w_c A_ci          A_ci = Σ_{j∈c, j≠i} K_ij = x_i · Σ_{j∈c} x_j − [i∈c] ‖x_i‖²

S comes from Gram tiles, whose rows and columns are summed by cluster; A straight from the features.

Shapes: N tokens in the order of their clusters, D and E widths, C clusters, R draws, t tokens of a tile, c clusters of a tile.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.linalg import vecdot

from recoup.cka.hsic import root
from recoup.cka.sums import gram_tile, tiles
from recoup.cka.tokens import MIN_TOKENS, Features, Space, Tokens, centred, weigh
from recoup.errors import DataError

MIN_CLUSTERS = 2
DRAWS_BYTES = 32 * 2**20  # of each array of draws × tokens


@dataclass(frozen=True)
class Clusters:
    """Tokens ordered by cluster."""

    tokens: Tokens
    cluster_N: Integer[Tensor, " N"]  # 0 to C − 1, ascending
    number: int


def cluster(tokens: Tokens, clusters_N: Integer[Tensor, " N"]) -> Clusters:
    """The tokens that count in the order of their clusters.

    Raises:
        DataError: fewer than 2 clusters.
    """
    kept_N = clusters_N.cpu() if tokens.rows_n is None else clusters_N.cpu()[tokens.rows_n.cpu()]
    names, number_N = kept_N.unique(return_inverse=True)
    if len(names) < MIN_CLUSTERS:
        raise DataError(
            f"cka_pairs: a bootstrap needs at least {MIN_CLUSTERS} clusters, got {len(names)}; give more prompts"
        )
    order_N = number_N.argsort(stable=True)
    order_N = order_N.to(tokens.roots_n.device)
    rows_N = order_N if tokens.rows_n is None else tokens.rows_n[order_N]
    return Clusters(weigh(rows_N, tokens.weights_n, tokens.roots_n), number_N.sort().values, len(names))


def draw_weights(clusters: Clusters, num_draws: int, seed: int) -> Float[Tensor, "R C"]:
    """How often each cluster is drawn, float64: once each in row 0, then in `num_draws` draws of C with replacement.

    Raises:
        DataError: a draw has fewer than 4 tokens, or half of it is copies of one.
    """
    C = clusters.number
    drawn_RC = torch.randint(C, (num_draws, C), generator=torch.Generator().manual_seed(seed))
    weights_RC = torch.zeros(num_draws, C, dtype=torch.float64).scatter_add_(
        1, drawn_RC, torch.ones(num_draws, C, dtype=torch.float64)
    )
    sizes_C = clusters.cluster_N.bincount(minlength=C).double()
    few_R = (weights_RC > 0).double() @ sizes_C < MIN_TOKENS
    lone_R = 2 * weights_RC.amax(1) >= weights_RC @ sizes_C
    if bool((few_R | lone_R).any()):
        raise DataError("cka_pairs: a draw of the bootstrap has too few tokens to compare; give more or longer prompts")
    return torch.cat([torch.ones(1, C, dtype=torch.float64), weights_RC])


def drawn(
    layers: tuple[Float[Tensor, "N D"], Float[Tensor, "N E"]],
    clusters: Clusters,
    weights_RC: Float[Tensor, "R C"],
    number: int,
) -> Float[Tensor, " R"]:
    """Debiased CKA of a pair of layers in every draw, float64.

    Args:
        layers: the pair's features.
        clusters: of the tokens.
        weights_RC: how often each cluster was drawn.
        number: the pair's, for errors.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: the features do not vary in some draw.
    """
    names = [f"layer {number} of X", f"layer {number} of Y"]
    X, Y = (centred(layer, clusters.tokens, name) for layer, name in zip(layers, names, strict=True))
    pairs_3CC = _sums_by_cluster(X.layers[0], Y.layers[0], clusters)
    A_CN, B_CN = _rows_by_cluster(X, clusters), _rows_by_cluster(Y, clusters)
    size = max(1, DRAWS_BYTES // (8 * clusters.tokens.number))
    hsic_3R = torch.cat([_hsic(pairs_3CC, A_CN, B_CN, w_RC, clusters) for w_RC in weights_RC.split(size)], dim=1)
    xy_R, xx_R, yy_R = hsic_3R
    sizes = [((weights_RC @ pairs_CC) * weights_RC).sum(1) for pairs_CC in pairs_3CC[1:]]
    root_x, root_y = (
        root(own_R, size_R, [name] * len(own_R)) for own_R, size_R, name in zip((xx_R, yy_R), sizes, names, strict=True)
    )
    return xy_R / (root_x * root_y)


def _sums_by_cluster(X_ND: Tensor, Y_NE: Tensor, clusters: Clusters) -> Float[Tensor, "3 C C"]:
    """S of X with Y, of X with itself and of Y with itself, in float64."""
    sums_3CC = torch.zeros(3, clusters.number, clusters.number, dtype=torch.float64)
    space = Space()
    for rows, columns in tiles(len(X_ND), 2, X_ND.element_size()):
        K_tu = gram_tile([X_ND], rows, columns, "tile of X", space)[0]
        L_tu = gram_tile([Y_NE], rows, columns, "tile of Y", space)[0]
        (row_c, P_tc), (column_c, Q_uc) = (_members(clusters.cluster_N[block], K_tu) for block in (rows, columns))
        products = (K_tu * L_tu, K_tu * K_tu, L_tu * L_tu)
        tile_3cc = torch.stack([P_tc.T @ product_tu @ Q_uc for product_tu in products]).double().cpu()
        sums_3CC[:, row_c, column_c] += tile_3cc
        if rows != columns:
            sums_3CC[:, column_c, row_c] += tile_3cc.mT
    return sums_3CC


def _members(cluster_t: Tensor, like: Tensor) -> tuple[slice, Tensor]:
    """The clusters of consecutive tokens, and who belongs to which as 0 and 1, (t, c)."""
    first, last = int(cluster_t[0]), int(cluster_t[-1])
    return slice(first, last + 1), torch.nn.functional.one_hot(cluster_t - first, last - first + 1).to(like)


def _rows_by_cluster(X: Features, clusters: Clusters) -> Float[Tensor, "C N"]:
    """A in float64."""
    X_ND, norms_N = X.layers[0], X.norms_Ln[0]
    sums_CD = X_ND.new_zeros(clusters.number, X_ND.shape[1]).index_add_(0, clusters.cluster_N.to(X_ND.device), X_ND)
    rows_CN = (sums_CD @ X_ND.T).double().cpu()
    rows_CN[clusters.cluster_N, torch.arange(len(X_ND))] -= norms_N
    return rows_CN


def _hsic(pairs_3CC: Tensor, A_CN: Tensor, B_CN: Tensor, w_RC: Tensor, clusters: Clusters) -> Float[Tensor, "3 R"]:
    """What `row_part` leaves of the sums over pairs, for weights that differ from draw to draw."""
    w_RN = w_RC[:, clusters.cluster_N]
    g_RN = w_RN / (w_RN.sum(1, keepdim=True) - 2 * w_RN)
    k_RN, l_RN = w_RC @ A_CN, w_RC @ B_CN
    share_R = 1 + g_RN.sum(1)

    def hsic(pairs_CC: Tensor, left_RN: Tensor, right_RN: Tensor) -> Tensor:
        weighed_RN = g_RN * left_RN
        rows_R = vecdot(weighed_RN, right_RN) - weighed_RN.sum(1) * vecdot(g_RN, right_RN) / share_R
        return vecdot(w_RC @ pairs_CC, w_RC) - 2 * rows_R

    return torch.stack([hsic(pairs_3CC[0], k_RN, l_RN), hsic(pairs_3CC[1], k_RN, k_RN), hsic(pairs_3CC[2], l_RN, l_RN)])
