"""CKA with a Gaussian kernel: tokens near one another in one model are near one another in the other (1905.00414, section 3).

K_ij = exp(−‖x_i − x_j‖² / (2s²)), s the `bandwidth` times the median distance between two tokens. A wide kernel looks at all
pairs and tends to linear CKA, a narrow one at close neighbours alone. The median is over pairs i < j, exact (the lower of the
two middle ones), and found without keeping n² numbers: a positive float32 sorts like the whole number that its bits spell, so
pairs are counted by their upper 16 bits, then those that share the median's by the lower 16. The authors' own code counts a
token's distance of 0 from itself, too.

Three passes over Gram tiles for each side, never n × n at once. Distances are float32 (float64 for float64 features).

Shapes: N tokens, D and E widths, t and u tokens of a tile.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.cka.hsic import root, row_part, shares
from recoup.cka.sums import tiles
from recoup.cka.tokens import ROUNDING, Tokens, centred, check_enough, choose
from recoup.errors import ConfigError, DataError

RESOLUTION = 16 * torch.finfo(torch.float64).eps  # kernels are float64
HALF = 2**16  # values of the upper and of the lower 16 bits
SIDES = 8  # a tile of this many layers' size: distances, kernels and products of two sides


def rbf_cka(
    X_ND: Float[Tensor, "N D"],
    Y_NE: Float[Tensor, "N E"],
    *,
    bandwidth: float = 1.0,
    mask_N: Bool[Tensor, " N"] | None = None,
    debiased: bool = True,
) -> float:
    """CKA of two models' features under Gaussian kernels.

    Args:
        X_ND: one model's features.
        Y_NE: the other's, at the same tokens.
        bandwidth: the kernel's s as a share of the median distance.
        mask_N: true at tokens that count.
        debiased: HSIC_1, in [−1, 1]; otherwise HSIC_0, in [0, 1].

    Raises:
        ConfigError: the bandwidth is not above 0.
        SourceError: a feature is NaN or infinite.
        DataError: fewer than 4 tokens, or half of all pairs of tokens are equal.
    """
    if not bandwidth > 0:
        raise ConfigError(f"rbf_cka: bandwidth must be above 0, got {bandwidth}")
    tokens = choose([X_ND, Y_NE], mask_N, None)
    check_enough(tokens)
    X, Y = (_Distances.of(side, tokens, name) for side, name in ((X_ND, "X"), (Y_NE, "Y")))
    widths = [bandwidth * side.median() for side in (X, Y)]
    hsic_22, sizes_22 = _hsic(X, Y, widths, shares(tokens.weights_n, debiased))
    root_2 = root(hsic_22.diagonal(), sizes_22.diagonal(), ["X", "Y"], RESOLUTION)
    return float(hsic_22[0, 1] / root_2.prod())


@dataclass(frozen=True)
class _Distances:
    """Squared distances between tokens, a tile at a time."""

    X_ND: Tensor
    norms_N: Tensor
    name: str

    @classmethod
    def of(cls, X_ND: Tensor, tokens: Tokens, name: str) -> "_Distances":
        X = centred(X_ND, tokens, name)
        return cls(X.layers[0], X.norms_Ln[0].to(X.layers[0]), name)

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "t u"]:
        norms_tu = self.norms_N[rows, None] + self.norms_N[columns]
        return torch.addmm(norms_tu, self.X_ND[rows], self.X_ND[columns].T, alpha=-2).clamp_min(0)  # below: rounding

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        return tiles(len(self.X_ND), SIDES, self.X_ND.element_size())

    def median(self) -> float:
        """The median distance between two tokens.

        Raises:
            DataError: it is 0.
        """
        rank = (len(self.X_ND) * (len(self.X_ND) - 1) // 2 - 1) // 2
        upper, rank = _where(rank, (bits // HALF for bits in self._bits()))
        lower, _ = _where(rank, (bits[bits // HALF == upper] % HALF for bits in self._bits()))
        square = torch.tensor(upper * HALF + lower, dtype=torch.int32).view(torch.float32)
        if not square > ROUNDING * torch.finfo(self.norms_N.dtype).eps * self.norms_N.mean():
            raise DataError(f"rbf_cka: half of all pairs of tokens of {self.name} are equal, so no kernel width fits")
        return float(square.sqrt())

    def _bits(self) -> Iterator[Tensor]:
        """Squared distances of tokens i < j as the whole numbers that their bits spell."""
        for rows, columns in self.tiles():
            tile_tu = self.tile(rows, columns).float()
            if rows == columns:
                yield tile_tu[torch.ones_like(tile_tu, dtype=torch.bool).triu(1)].view(torch.int32)
            else:
                yield tile_tu.flatten().view(torch.int32)


def _where(rank: int, numbers: Iterable[Tensor]) -> tuple[int, int]:
    """The number of this rank (from 0) among numbers below `HALF`, and its rank among those equal to it."""
    counts = torch.zeros(HALF, dtype=torch.int64)
    for some in numbers:
        counts += some.bincount(minlength=HALF).cpu()
    up_to = counts.cumsum(0)
    found = int(torch.searchsorted(up_to, rank, right=True))
    return found, rank - int(up_to[found] - counts[found])


def _hsic(X: _Distances, Y: _Distances, widths: Sequence[float], g_N: Tensor) -> tuple[Tensor, Tensor]:
    """HSIC of the two sides with each other and with themselves, times n(n−3) or (n−1)², and Σ K_ij L_ij likewise.

    Of K − 1 rather than K: to HSIC a constant is nothing, but a wide kernel would lose its digits to it. The diagonal is 0 then,
    which suits both forms.
    """
    sums_22, rows_2N = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, len(g_N), dtype=torch.float64)
    for rows, columns in X.tiles():
        tiles = [
            side.tile(rows, columns).double() / (-2 * width**2) for side, width in zip((X, Y), widths, strict=True)
        ]
        kernels_2tu = torch.stack(tiles).cpu().expm1_()
        if rows == columns:
            kernels_2tu.diagonal(dim1=1, dim2=2).zero_()  # but for rounding it is
        rows_2N[:, rows] += kernels_2tu.sum(2)
        if rows != columns:
            rows_2N[:, columns] += kernels_2tu.sum(1)
        flat_2k = kernels_2tu.flatten(1)
        sums_22 += (1 if rows == columns else 2) * (flat_2k @ flat_2k.T)
    return sums_22 - row_part(rows_2N, rows_2N, g_N), sums_22
