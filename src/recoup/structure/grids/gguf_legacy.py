"""llama.cpp's older formats, Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: a block of 32 weights shares a float16 scale.

    Q4_0, Q5_0, Q8_0: w = scale · code           (the scale of the first two carries the sign of the largest weight)
    Q4_1, Q5_1:       w = scale · code + min     (min is a float16 too)

Source: ggml-org/llama.cpp, ggml/src/ggml-quants.c, `quantize_row_q*_ref`; the Python twin is gguf/quants.py. Both pick codes
with the scale as float32 computed it and store it as float16, so the parameters hold both: `scale` (and `min`) as stored,
`pick_scale` (and `pick_min`) that codes are picked with. Weights fitted and projected here are theirs bit for bit. The one
exception is a weight that already is on the stored grid: it stays, also where a block is so small (below float16's normal
range) or so far from zero for its width that they would pick another code. Read from a file, both scales are the stored one.

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

FLOAT32 = torch.finfo(torch.float32)
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


class LegacyGrid(BlockGrid):
    """Blocks of 32 with a float16 scale and, in some formats, a float16 minimum."""

    group_size = 32

    @abstractmethod
    def _exact(self, blocks_OGS: Float[Tensor, "O G S"]) -> Parameters:
        """The scale (and minimum), (O, G), in float32."""

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (and minimum), (O, G), from each block's extremes: as stored, and as codes are picked with.

        Raises:
            StructureError: the inputs do not fit the blocks, or the weight holds NaN or infinity.
        """
        check(weight_OI)
        exact = self._exact(self.blocks(weight_OI))
        kept = {key: stored(value_OG) for key, value_OG in exact.items()}
        return {**kept, **{f"pick_{key}": value_OG for key, value_OG in exact.items()}}

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> Float[Tensor, "O G S"]:
        """Codes as llama.cpp picks them, and a weight that is on the stored grid keeps its own."""
        blocks_OGS = self.blocks(weight_OI)
        codes_OGS = self._pick(blocks_OGS, parameters["pick_scale"], parameters.get("pick_min"))
        loose_OG = self._drift(parameters) >= PICK_MARGIN
        if loose_OG.any():
            own = {key: value_OG[loose_OG] for key, value_OG in parameters.items()}
            nearest_NS = self._pick(blocks_OGS[loose_OG], own["scale"], own.get("min"))
            on_grid_NS = self._value(nearest_NS.clone(), own) == blocks_OGS[loose_OG]
            codes_OGS[loose_OG] = torch.where(on_grid_NS, nearest_NS, codes_OGS[loose_OG])
        return codes_OGS

    def values(self, codes_OGS: Float[Tensor, "O G S"], parameters: Parameters) -> WeightOI:
        """Scale times code is exact in float32 (11 + 8 bits); adding the minimum rounds once."""
        return self._value(codes_OGS, parameters).add_(0.0).flatten(1)  # −0 becomes 0

    def _pick(
        self, blocks: Float[Tensor, "*N S"], scale: Float[Tensor, "*N"], minimum: Float[Tensor, "*N"] | None
    ) -> Float[Tensor, "*N S"]:
        """Codes for these scales, rounded as the C code does and clamped to the range of codes."""
        above = blocks if minimum is None else blocks - minimum[..., None]
        return self._rounded(above * inverse(scale)[..., None]).clamp_(self.low, self.high)

    def _rounded(self, codes: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
        """Half a code rounds up, as C's truncation of code + 8.5 does; overwrites `codes`."""
        return codes.add_(0.5 - self.low).floor_().add_(self.low)

    def _value(self, codes: Float[Tensor, "*N S"], parameters: Parameters) -> Float[Tensor, "*N S"]:
        values = codes.mul_(parameters["scale"][..., None])
        return values.add_(parameters["min"][..., None]) if "min" in parameters else values

    def _drift(self, parameters: Parameters) -> Float[Tensor, "O G"]:
        """How far, in codes, storing scales as float16 may move a weight from the code it was picked for."""
        scale_OG, exact_OG = parameters["scale"], parameters["pick_scale"]
        drift_OG = (scale_OG / exact_OG - 1).abs() * max(self.high, -self.low)
        if "min" in parameters:
            drift_OG += (parameters["min"] - parameters["pick_min"]).abs() / exact_OG
        return drift_OG


class ScaledGrid(LegacyGrid):
    """w = scale · code."""

    trainable_scale: ClassVar[bool] = True

    def _exact(self, blocks_OGS: Float[Tensor, "O G S"]) -> Parameters:
        """The weight of largest magnitude gets the lowest code, so the scale has the other sign."""
        return {"scale": quotient(extreme(blocks_OGS), self.low)}

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """Other scales, as normal float16 numbers; none changes its sign, since that would turn every weight of a block."""
        sign_OG = torch.where(parameters["scale"] < 0, -1.0, 1.0)
        scale_OG = sign_OG * half(sign_OG * scale_OG)
        return {"scale": scale_OG, "pick_scale": scale_OG}


class MinimumGrid(LegacyGrid):
    """w = scale · code + min, with codes from 0: the smallest weight of a block gets code 0, the largest the highest."""

    low: ClassVar[int] = 0

    def _exact(self, blocks_OGS: Float[Tensor, "O G S"]) -> Parameters:
        low_OG = blocks_OGS.amin(-1)
        return {"scale": quotient(blocks_OGS.amax(-1) - low_OG, self.high), "min": low_OG}


@dataclass(frozen=True)
class Q40Grid(ScaledGrid):
    """Sixteen codes from −8 to 7; the weight of largest magnitude gets −8."""

    format: ClassVar[str] = "q4_0"
    block_bytes: ClassVar[int] = 18
    low: ClassVar[int] = -8
    high: ClassVar[int] = 7


@dataclass(frozen=True)
class Q50Grid(ScaledGrid):
    """Thirty-two codes from −16 to 15; the weight of largest magnitude gets −16."""

    format: ClassVar[str] = "q5_0"
    block_bytes: ClassVar[int] = 22
    low: ClassVar[int] = -16
    high: ClassVar[int] = 15


@dataclass(frozen=True)
class Q80Grid(ScaledGrid):
    """Codes of eight bits; llama.cpp writes −127 to 127, and a file may hold −128."""

    format: ClassVar[str] = "q8_0"
    block_bytes: ClassVar[int] = 34
    low: ClassVar[int] = -128
    high: ClassVar[int] = 127

    def _exact(self, blocks_OGS: Float[Tensor, "O G S"]) -> Parameters:
        return {"scale": quotient(blocks_OGS.abs().amax(-1), self.high)}

    def _rounded(self, codes: Float[Tensor, "*N S"]) -> Float[Tensor, "*N S"]:
        """Half a code rounds away from zero, as C's `roundf` does."""
        whole = codes.trunc()
        return codes.sub_(whole).mul_(2).trunc_().add_(whole)


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


def quotient(dividend: Tensor | int, divisor: Tensor | int) -> Tensor:
    """Divided as C divides. `/` on a tensor and a plain number may multiply by an inverse instead, which rounds twice."""
    device = dividend.device if isinstance(dividend, Tensor) else None
    device = divisor.device if isinstance(divisor, Tensor) else device
    return torch.as_tensor(dividend, device=device) / torch.as_tensor(divisor, device=device)


def inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for a scale of 0 or too small for an inverse."""
    return torch.where(scale.abs() < FLOAT32.smallest_normal, 0.0, 1 / scale)


def stored(scale: Tensor) -> Tensor:
    """As float16 stores it, in float32; beyond its range the largest it has, where llama.cpp would write infinity."""
    return scale.clamp(-FLOAT16.max, FLOAT16.max).to(torch.float16).float()
