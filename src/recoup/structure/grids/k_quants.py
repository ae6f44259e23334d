"""llama.cpp's K-quants, Q2_K to Q6_K: super-blocks of 256 weights, whose sub-blocks' scales are themselves quantized.

    Q2_K, Q4_K, Q5_K: w = (d · sc) · code − (dmin · m)
    Q3_K, Q6_K:       w = (d · sc) · code

d and dmin are float16 and one per super-block; sc and m are small integers and one per sub-block of 16 (Q2_K, Q3_K, Q6_K) or
32 weights. Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, `quantize_row_q*_K_ref`, which llama-quantize runs when it is
given no importance matrix; the order of float32 operations is theirs, so weights agree bit for bit but for degenerate
blocks (`k_search`). Parameters: `d` (O, G), `sc` (O, G, B), with a minimum also `dmin` and `m`, and their products `scale`
and `min` (O, G, B) as weights use them.

Scales are searched, which takes some eighty times as long as projecting, so they are fitted once and stay while weights
train.

Shapes: O output width, I input width, G super-blocks along the input, B sub-blocks in one, S weights in a super-block.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError, unknown_name
from recoup.structure.grids.base import Grid, Parameters, WeightOI, check
from recoup.structure.grids.gguf_legacy import (
    BlockGrid,
    Q40Grid,
    Q41Grid,
    Q50Grid,
    Q51Grid,
    Q80Grid,
    extreme,
    inverse,
    quotient,
    stored,
)
from recoup.structure.grids.k_search import (
    GROUP_MAX_EPS,
    MinimumSearch,
    in_chunks,
    refined_scale,
    scale_and_minimum,
    symmetric_scale,
)

# What is used where 256 does not divide the inputs: llama.cpp, src/llama-quant.cpp, but for Q2_K and Q3_K, where it takes
# IQ4_NL: also 4.5 bits in blocks of 32, with uneven codes, which are not written here.
FALLBACK = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


class SuperBlockGrid(BlockGrid):
    """What K-quants share.

    Attributes:
        sub_blocks: how many there are in a super-block.
    """

    group_size = 256
    quick_fit: ClassVar[bool] = False
    sub_blocks: ClassVar[int]

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scales (and minima) as llama-quantize finds them; about a fifth of a second per million weights on one core.

        Raises:
            StructureError: the inputs do not fit the blocks, or the weight holds NaN or infinity.
        """
        check(weight_OI)
        blocks_OGS = self.blocks(weight_OI)
        outputs, groups, _ = blocks_OGS.shape
        x_SN = blocks_OGS.reshape(outputs * groups * self.sub_blocks, -1).T
        return self._fit(x_SN, (outputs, groups, self.sub_blocks))

    @abstractmethod
    def _fit(self, x_SN: Float[Tensor, "S N"], shape: tuple[int, int, int]) -> Parameters:
        """Parameters for sub-blocks that are laid out in `shape` (O, G, B)."""

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """Half a code rounds to even; codes where the scale is 0 are 0."""
        codes_OGS = self.blocks(weight_OI)
        codes_OGBS = codes_OGS.view(*codes_OGS.shape[:2], self.sub_blocks, -1)
        scale_OGB1 = parameters["scale"][..., None]
        divisor_OGB1 = torch.where(scale_OGB1 == 0, torch.inf, scale_OGB1)
        if "min" in parameters:
            codes_OGBS = (codes_OGBS + parameters["min"][..., None]).div_(divisor_OGB1)
        else:
            codes_OGBS = codes_OGBS / divisor_OGB1
        return codes_OGBS.round_().clamp_(self.low, self.high).flatten(2)

    def values(self, codes_OGS: Float[Tensor, "O G S"], parameters: Parameters) -> WeightOI:
        """Scale times code is exact in float32 (at most 23 bits); taking the minimum off rounds once."""
        values_OGBS = codes_OGS.view(*codes_OGS.shape[:2], self.sub_blocks, -1).mul_(parameters["scale"][..., None])
        if "min" in parameters:
            values_OGBS.sub_(parameters["min"][..., None])
        return values_OGBS.add_(0.0).flatten(1)  # −0 becomes 0

    def misfit(self, inputs: int) -> str:
        """Why a weight of so many inputs does not fit, and what does."""
        name, other = self.format.upper(), FALLBACK[self.format].upper()
        known = "IQ4_NL there, of the same size" if other == "Q4_0" else "that too"
        return (
            f"{name} needs inputs in blocks of {self.group_size}, not {inputs}; use {other} (llama.cpp takes {known})"
        )


class MinimumKGrid(SuperBlockGrid):
    """w = (d · sc) · code − (dmin · m), codes from 0.

    Attributes:
        scale_top: the largest sc and m.
        search: how the scales of sub-blocks are searched.
    """

    low: ClassVar[int] = 0
    scale_top: ClassVar[int]
    search: ClassVar[MinimumSearch]

    def _fit(self, x_SN: Float[Tensor, "S N"], shape: tuple[int, int, int]) -> Parameters:
        both_2N = in_chunks(
            lambda x_SN: torch.stack(scale_and_minimum(x_SN, self._importance(x_SN), self.search)), x_SN
        )
        (d, sc), (dmin, m) = (self._stored_integers(part_N.view(shape)) for part_N in both_2N)
        return with_minimum(d, sc, dmin, m)

    def _stored_integers(self, scale_OGB: Float[Tensor, "O G B"]) -> tuple[Tensor, Tensor]:
        """The super-block's float16 scale, and each sub-block's in units of it; rounded with the scale as float32 has it."""
        largest_OG = scale_OGB.amax(-1).clamp_min(0).add(0.0)  # −0, of a zero minimum, becomes 0
        units_OGB = quotient(self.scale_top, largest_OG)[..., None] * scale_OGB
        units_OGB = torch.where(largest_OG[..., None] > GROUP_MAX_EPS, units_OGB, 0.0)
        return stored(quotient(largest_OG, self.scale_top)), units_OGB.round().clamp(0, self.scale_top).to(torch.uint8)

    def _importance(self, x_SN: Float[Tensor, "S N"]) -> Float[Tensor, "S N"]:
        """Weights of the error: root mean square plus magnitude."""
        squares_N = x_SN[0] * x_SN[0]
        for x_N in x_SN[1:]:
            squares_N += x_N * x_N
        # by way of float64, since the square root of a float32 tensor is not always the nearest float32
        return (squares_N / len(x_SN)).double().sqrt().float() + x_SN.abs()


@dataclass(frozen=True)
class Q2KGrid(MinimumKGrid):
    """Four codes; sixteen sub-blocks with 4-bit scales and minima."""

    format: ClassVar[str] = "q2_k"
    block_bytes: ClassVar[int] = 84
    high: ClassVar[int] = 3
    sub_blocks: ClassVar[int] = 16
    scale_top: ClassVar[int] = 15
    search: ClassVar[MinimumSearch] = MinimumSearch(top=3, first=-0.5, steps=15, absolute=True)

    def _importance(self, x_SN: Float[Tensor, "S N"]) -> Float[Tensor, "S N"]:
        return x_SN.abs()


@dataclass(frozen=True)
class Q4KGrid(MinimumKGrid):
    """Sixteen codes; eight sub-blocks with 6-bit scales and minima."""

    format: ClassVar[str] = "q4_k"
    block_bytes: ClassVar[int] = 144
    high: ClassVar[int] = 15
    sub_blocks: ClassVar[int] = 8
    scale_top: ClassVar[int] = 63
    search: ClassVar[MinimumSearch] = MinimumSearch(top=15, first=-1.0, steps=20)


@dataclass(frozen=True)
class Q5KGrid(MinimumKGrid):
    """Thirty-two codes; eight sub-blocks with 6-bit scales and minima."""

    format: ClassVar[str] = "q5_k"
    block_bytes: ClassVar[int] = 176
    high: ClassVar[int] = 31
    sub_blocks: ClassVar[int] = 8
    scale_top: ClassVar[int] = 63
    search: ClassVar[MinimumSearch] = MinimumSearch(top=31, first=-0.5, steps=15)


class SymmetricKGrid(SuperBlockGrid):
    """w = (d · sc) · code; scales have a sign, and the one of largest magnitude gets the lowest sc.

    Attributes:
        scale_low: the smallest sc.
    """

    sub_blocks: ClassVar[int] = 16
    scale_low: ClassVar[int]

    @abstractmethod
    def _search(self, x_SN: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
        """Scales of the sub-blocks."""

    def _fit(self, x_SN: Float[Tensor, "S N"], shape: tuple[int, int, int]) -> Parameters:
        scale_OGB = in_chunks(self._search, x_SN).view(shape)
        largest_OG = extreme(scale_OGB)
        largest_OG = torch.where(largest_OG.abs() < GROUP_MAX_EPS, 0.0, largest_OG)
        unit_OG = torch.where(largest_OG == 0, 0.0, quotient(self.scale_low, largest_OG))
        sc_OGB = (unit_OG[..., None] * scale_OGB).round().clamp(self.scale_low, -self.scale_low - 1)
        return without_minimum(stored(inverse(unit_OG)), sc_OGB.to(torch.int8))


@dataclass(frozen=True)
class Q3KGrid(SymmetricKGrid):
    """Eight codes from −4 to 3; sixteen sub-blocks with 6-bit scales."""

    format: ClassVar[str] = "q3_k"
    block_bytes: ClassVar[int] = 110
    low: ClassVar[int] = -4
    high: ClassVar[int] = 3
    scale_low: ClassVar[int] = -32

    def _search(self, x_SN: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
        return refined_scale(x_SN, -self.low)


@dataclass(frozen=True)
class Q6KGrid(SymmetricKGrid):
    """Sixty-four codes from −32 to 31; sixteen sub-blocks with 8-bit scales."""

    format: ClassVar[str] = "q6_k"
    block_bytes: ClassVar[int] = 210
    low: ClassVar[int] = -32
    high: ClassVar[int] = 31
    scale_low: ClassVar[int] = -128

    def _search(self, x_SN: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
        return symmetric_scale(x_SN, -self.low)


def with_minimum(d_OG: Tensor, sc_OGB: Tensor, dmin_OG: Tensor, m_OGB: Tensor) -> Parameters:
    """Parameters of a format with minima, from what a file stores."""
    minimum = {"dmin": dmin_OG, "m": m_OGB, "min": dmin_OG[..., None] * m_OGB}
    return {**without_minimum(d_OG, sc_OGB), **minimum}


def without_minimum(d_OG: Tensor, sc_OGB: Tensor) -> Parameters:
    """Parameters of a format without minima, from what a file stores."""
    return {"d": d_OG, "sc": sc_OGB, "scale": d_OG[..., None] * sc_OGB}


LEGACY: tuple[type[BlockGrid], ...] = (Q40Grid, Q41Grid, Q50Grid, Q51Grid, Q80Grid)
K_QUANTS: tuple[type[BlockGrid], ...] = (Q2KGrid, Q3KGrid, Q4KGrid, Q5KGrid, Q6KGrid)
GGUF_GRIDS: dict[str, type[BlockGrid]] = {grid.format: grid for grid in (*LEGACY, *K_QUANTS)}


def gguf_grid(format: str, inputs: int) -> Grid:  # noqa: A002
    """The grid of a llama.cpp format for a weight of so many inputs, or of the format llama.cpp takes where it does not fit.

    Raises:
        StructureError: an unknown format, or inputs that no block format fits.
    """
    if format not in GGUF_GRIDS:
        raise StructureError(unknown_name("llama.cpp format", format, GGUF_GRIDS))
    grid = GGUF_GRIDS[format]()
    if inputs % grid.group_size and format in FALLBACK:
        grid = GGUF_GRIDS[FALLBACK[format]]()
    if inputs % grid.group_size:
        raise StructureError(grid.misfit(inputs))
    return grid
