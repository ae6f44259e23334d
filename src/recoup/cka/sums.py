"""Σ_{i≠j} K_ij L_ij for every two layers: through Gram matrices in tiles, or through the features' own products.

    Gram     n²(ΣD + ΣE) operations: every layer's n × n Gram matrix, half of it, since it is symmetric
    features 2n(ΣD · ΣE + ΣD² + ΣE²): ‖XᵀY‖² = Σ_ij K_ij L_ij of every two layers, less the diagonal Σ a_i b_i

For L layers of width D on both sides the first is cheaper below n = D (L + 2) tokens. Tiles
of all layers' Gram matrices stand in a buffer of 64 MB, one row a layer, so that all pairs of layers are one product of
(L, t²) with (t², M). Entries of products are float32 (bf16 products: rounded to bfloat16, entry by entry), their sums within a
tile float32, over tiles float64.

Shapes: N tokens, D and E widths, L and M layers, t tokens of a tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.cka.tokens import Features, Space

FLOAT32 = 4  # bytes
BUFFER_BYTES = 64 * 2**20
LARGEST_TILE = 256  # tokens; larger ones are no faster
HALVED_TILE = 128  # tokens; two blocks of float32 save a quarter of the work, smaller ones lose it again


@dataclass(frozen=True)
class Sums:
    """Σ_{i≠j} K_ij L_ij in float64."""

    xy_LM: Float[Tensor, "L M"]
    xx_L: Float[Tensor, " L"]
    yy_M: Float[Tensor, " M"]

    def plus(self, other: "Sums", times: float = 1.0) -> "Sums":
        """These sums and `times` the other ones."""
        return Sums(self.xy_LM + times * other.xy_LM, self.xx_L + times * other.xx_L, self.yy_M + times * other.yy_M)


def pair_sums(X: Features, Y: Features, space: Space) -> Sums:
    """The sums of every layer of X with every layer of Y, and of each with itself, by the cheaper way."""
    if grams_are_cheaper(X.norms_Ln.shape[1], _widths(X), _widths(Y)):
        return _through_grams(X, Y, space)
    return _through_features(X, Y)


def grams_are_cheaper(num_tokens: int, X: Sequence[int], Y: Sequence[int]) -> bool:
    """Whether Gram tiles take fewer operations than products of the features, for layers of these widths."""
    squares = sum(width**2 for width in (*X, *Y))
    return num_tokens * (sum(X) + sum(Y)) < 2 * (sum(X) * sum(Y) + squares)


def tiles(num_tokens: int, num_layers: int, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles that cover the upper half of a Gram matrix, those on the diagonal whole."""
    fits = int((BUFFER_BYTES / (num_layers * max(itemsize, FLOAT32))) ** 0.5)
    largest = HALVED_TILE if num_tokens <= LARGEST_TILE and itemsize >= FLOAT32 else LARGEST_TILE
    num_blocks = -(-num_tokens // max(1, min(fits, largest)))
    size = -(-num_tokens // num_blocks)
    for first in range(0, num_tokens, size):
        for second in range(first, num_tokens, size):
            yield slice(first, min(first + size, num_tokens)), slice(second, min(second + size, num_tokens))


def gram_tile(layers: Sequence[Tensor], rows: slice, columns: slice, name: str, space: Space) -> Float[Tensor, "L t u"]:
    """Every layer's Gram matrix between two blocks of tokens, without its diagonal, in the memory of that name."""
    shape = len(layers), rows.stop - rows.start, columns.stop - columns.start
    tile_Ltu = space.take(name, shape, torch.promote_types(layers[0].dtype, torch.float32), layers[0].device)
    for layer_ND, tile_tu in zip(layers, tile_Ltu, strict=True):
        if layer_ND.dtype == tile_tu.dtype:
            torch.mm(layer_ND[rows], layer_ND[columns].T, out=tile_tu)
        else:
            # bfloat16 entries, each rounded by itself; what is made of them is summed in float32
            tile_tu.copy_(layer_ND[rows] @ layer_ND[columns].T)
    if rows == columns:
        tile_Ltu.diagonal(dim1=1, dim2=2).zero_()
    return tile_Ltu


def _through_grams(X: Features, Y: Features, space: Space) -> Sums:
    number = len(X.layers) + len(Y.layers)
    sums = nothing(len(X.layers), len(Y.layers))
    for rows, columns in tiles(X.norms_Ln.shape[1], number, X.layers[0].element_size()):
        K_Lk = gram_tile(X.layers, rows, columns, "tile of X", space).flatten(1)
        L_Mk = gram_tile(Y.layers, rows, columns, "tile of Y", space).flatten(1)
        tile = Sums((K_Lk @ L_Mk.T).double().cpu(), _own(K_Lk), _own(L_Mk))
        sums = sums.plus(tile, times=1.0 if rows == columns else 2.0)
    return sums


def _through_features(X: Features, Y: Features) -> Sums:
    xy = [[_square(x_ND.T @ y_NE) for y_NE in Y.layers] for x_ND in X.layers]
    xx, yy = ([_square(x_ND.T @ x_ND) for x_ND in side.layers] for side in (X, Y))
    a_LN, b_MN = X.norms_Ln, Y.norms_Ln
    return Sums(
        torch.tensor(xy, dtype=torch.float64) - a_LN @ b_MN.T,
        torch.tensor(xx, dtype=torch.float64) - a_LN.square().sum(1),
        torch.tensor(yy, dtype=torch.float64) - b_MN.square().sum(1),
    )


def nothing(num_X: int, num_Y: int) -> Sums:
    """Sums before anything is added."""
    zero = torch.zeros(num_X, num_Y, dtype=torch.float64)
    return Sums(zero, zero[:, 0], zero[0])


def _own(K_Lk: Tensor) -> Tensor:
    """Each row times itself, by the product that rows of two sides meet in: what is equal has a CKA of 1, not nearly."""
    return torch.cat([(K_k[None] @ K_k[None].T)[0] for K_k in K_Lk]).double().cpu()


def _square(A_DE: Tensor) -> float:
    return float(torch.linalg.vector_norm(A_DE, dtype=torch.float64).square())


def _widths(side: Features) -> list[int]:
    return [layer_ND.shape[1] for layer_ND in side.layers]
