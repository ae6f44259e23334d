"""llama.cpp's older formats, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: a block of 32 weights shares a float16 scale.

    Q4_0, Q5_0, Q8_0: w = scale · code           (the scale of the first two carries the sign of the largest weight)
    Q4_1, Q5_1:       w = scale · code + min     (min is a float16 too)

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, `quantize_row_q*_ref`; the Python twin is gguf/quants.py. Both pick codes
with the scale as float32 computed it and store it as float16, so the parameters hold both: `scale` (and `min`) as stored,
`pick_scale` (and `pick_min`) that codes are picked with. Weights fitted and projected here are theirs bit for bit, with one
difference: where a block is so small (below float16's normal range) or so far from zero for its width that picking again
would move a weight already on the grid, codes are picked with the stored values. They are then the nearest ones, and theirs
are not.

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids.base import FLOAT16, Grid, Parameters, WeightOI, check, grouped, half

PICK_MARGIN = 0.49  # of a code: a drift below half a code picks the same code again; the rest is for float32's rounding


class BlockGrid(Grid):
    """What llama.cpp's block formats share: integer codes, their values, and the size of a block in bytes.

    Attributes:
        block_bytes: bytes of a block in a file.
        low: the smallest code, as a number of scales.
        high: the largest code.
    """

    group_size: int
    block_bytes: ClassVar[int]
    low: ClassVar[int]
    high: ClassVar[int]

    @abstractmethod
    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """The code of each weight, a whole number from `low` to `high`."""

    @abstractmethod
    def values(self, codes_OGS: Float[Tensor, "O G S"], parameters: Parameters) -> WeightOI:
        """What the codes stand for, with the order of operations of `gguf.quants.dequantize`; may overwrite the codes."""

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """The code llama.cpp would pick with these scales, and its value."""
        return self.values(self.codes(weight_OI, parameters), parameters)

    @property
    def bits_per_weight(self) -> float:
        """Bytes of a block in a file, as bits, over the weights in it."""
        return 8 * self.block_bytes / self.group_size

    def describe(self) -> str:
        """Such as `Q4_K of llama.cpp, blocks of 256`."""
        return f"{self.format.upper()} of llama.cpp, blocks of {self.group_size}"

    def blocks(self, weight_OI: WeightOI) -> Float[Tensor, "O G S"]:
        """The weight in blocks.

        Raises:
            StructureError: the block does not divide the inputs.
        """
        if weight_OI.shape[1] % self.group_size:
            raise StructureError(self.misfit(weight_OI.shape[1]))
        return grouped(weight_OI.float(), self.group_size)

    def misfit(self, inputs: int) -> str:
        """Why a weight of so many inputs does not fit, and what does."""
        name = self.format.upper()
        return f"{name} needs inputs in blocks of {self.group_size}, not {inputs}; llama.cpp keeps such a weight in float16"


class ScaledGrid(BlockGrid):
    """w = scale · code."""

    group_size = 32
    trainable_scale: ClassVar[bool] = True

    @abstractmethod
    def _scale(self, blocks_OGS: Float[Tensor, "O G S"]) -> Float[Tensor, "O G"]:
        """The scale in float32."""

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scales (O, G) from each block's weight of largest magnitude.

        Raises:
            StructureError: the inputs do not fit the blocks, or the weight holds NaN, infinity or more than float16 scales reach.
        """
        check(weight_OI)
        exact_OG = self._scale(self.blocks(weight_OI))
        scale_OG = stored(exact_OG)
        drift_OG = (scale_OG / exact_OG - 1).abs() * -self.low
        return {"scale": scale_OG, "pick_scale": torch.where(drift_OG < PICK_MARGIN, exact_OG, scale_OG)}

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """Half a code rounds up, as the C code's truncation of code + 8.5 does."""
        codes_OGS = self.blocks(weight_OI) * inverse(parameters["pick_scale"])[..., None]
        return codes_OGS.add_(0.5 - self.low).floor_().add_(self.low).clamp_(self.low, self.high)

    def values(self, codes_OGS: Float[Tensor, "O G S"], parameters: Parameters) -> WeightOI:
        """Scale times code; exact in float32 (11 + 8 bits)."""
        return codes_OGS.mul_(parameters["scale"][..., None]).add_(0.0).flatten(1)  # −0 becomes 0

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """Other scales, as normal float16 numbers; none changes its sign, since that would turn every weight of a block."""
        sign_OG = torch.where(parameters["scale"] < 0, -1.0, 1.0)
        scale_OG = sign_OG * half(sign_OG * scale_OG)
        return {"scale": scale_OG, "pick_scale": scale_OG}


class MinimumGrid(BlockGrid):
    """w = scale · code + min, with codes from 0."""

    group_size = 32
    low: ClassVar[int] = 0

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale and minimum (O, G) from each block's extremes.

        Raises:
            StructureError: the inputs do not fit the blocks, or the weight holds NaN, infinity or more than float16 scales reach.
        """
        check(weight_OI)
        blocks_OGS = self.blocks(weight_OI)
        min_OG = blocks_OGS.amin(-1)
        exact_OG = (blocks_OGS.amax(-1) - min_OG) / self.high
        scale_OG, stored_min_OG = stored(exact_OG), stored(min_OG)
        drift_OG = (scale_OG / exact_OG - 1).abs() * self.high + (stored_min_OG - min_OG).abs() / exact_OG
        steady_OG = drift_OG < PICK_MARGIN
        return {
            "scale": scale_OG,
            "min": stored_min_OG,
            "pick_scale": torch.where(steady_OG, exact_OG, scale_OG),
            "pick_min": torch.where(steady_OG, min_OG, stored_min_OG),
        }

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """Half a code rounds up, as the C code's truncation of code + 0.5 does."""
        codes_OGS = self.blocks(weight_OI) - parameters["pick_min"][..., None]
        return codes_OGS.mul_(inverse(parameters["pick_scale"])[..., None]).add_(0.5).floor_().clamp_(0, self.high)

    def values(self, codes_OGS: Float[Tensor, "O G S"], parameters: Parameters) -> WeightOI:
        """Scale times code is exact in float32; adding the minimum rounds once."""
        return codes_OGS.mul_(parameters["scale"][..., None]).add_(parameters["min"][..., None]).add_(0.0).flatten(1)


@dataclass(frozen=True)
class Q40Grid(ScaledGrid):
    """Sixteen codes from −8 to 7; the weight of largest magnitude gets −8."""

    format: ClassVar[str] = "q4_0"
    block_bytes: ClassVar[int] = 18
    low: ClassVar[int] = -8
    high: ClassVar[int] = 7

    def _scale(self, blocks_OGS: Float[Tensor, "O G S"]) -> Float[Tensor, "O G"]:
        return extreme(blocks_OGS) / self.low


@dataclass(frozen=True)
class Q50Grid(ScaledGrid):
    """Thirty-two codes from −16 to 15; the weight of largest magnitude gets −16."""

    format: ClassVar[str] = "q5_0"
    block_bytes: ClassVar[int] = 22
    low: ClassVar[int] = -16
    high: ClassVar[int] = 15

    def _scale(self, blocks_OGS: Float[Tensor, "O G S"]) -> Float[Tensor, "O G"]:
        return extreme(blocks_OGS) / self.low


@dataclass(frozen=True)
class Q80Grid(ScaledGrid):
    """Codes of eight bits; llama.cpp writes −127 to 127, and a file may hold −128."""

    format: ClassVar[str] = "q8_0"
    block_bytes: ClassVar[int] = 34
    low: ClassVar[int] = -128
    high: ClassVar[int] = 127

    def _scale(self, blocks_OGS: Float[Tensor, "O G S"]) -> Float[Tensor, "O G"]:
        return blocks_OGS.abs().amax(-1) / self.high

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """Half a code rounds away from zero, as C's `roundf` does."""
        codes_OGS = self.blocks(weight_OI) * inverse(parameters["pick_scale"])[..., None]
        whole_OGS = codes_OGS.trunc()
        return codes_OGS.sub_(whole_OGS).mul_(2).trunc_().add_(whole_OGS).clamp_(self.low, self.high)


@dataclass(frozen=True)
class Q41Grid(MinimumGrid):
    """Sixteen codes from a block's smallest weight to its largest."""

    format: ClassVar[str] = "q4_1"
    block_bytes: ClassVar[int] = 20
    high: ClassVar[int] = 15


@dataclass(frozen=True)
class Q51Grid(MinimumGrid):
    """Thirty-two codes from a block's smallest weight to its largest."""

    format: ClassVar[str] = "q5_1"
    block_bytes: ClassVar[int] = 24
    high: ClassVar[int] = 31


def extreme(blocks_OGS: Float[Tensor, "*N S"]) -> Float[Tensor, "*N"]:
    """The number of largest magnitude, with its sign; the first of equals."""
    return blocks_OGS.gather(-1, blocks_OGS.abs().argmax(-1, keepdim=True)).squeeze(-1)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for a scale of 0."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def stored(scale: Tensor) -> Tensor:
    """As float16 stores it, in float32.

    Raises:
        StructureError: more than float16 can hold.
    """
    if (scale.abs() > FLOAT16.max).any():
        raise StructureError(
            f"a weight needs a scale of {scale.abs().max():.3g}; llama.cpp's formats hold {FLOAT16.max:g}"
        )
    return scale.to(torch.float16).float()
