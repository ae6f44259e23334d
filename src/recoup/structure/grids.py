"""Quantization grids: the values a weight may take. Pure functions of tensors, float32 inside.

A grid is fitted to a weight (`fit` gives scales and zero points) and projects onto it (`project`). Both are made so that
a value on the grid is exact in float32 and projecting twice changes no bit:

- `IntegerGrid`: w = scale (code − zero). Scales are rounded to float16 (11 significant bits) and codes have at most 8, so
  the product fits float32's 24. Symmetric codes run from −(2^(bits−1) − 1) to 2^(bits−1) − 1 and always include the end
  that set the scale.
- `NF4Grid`: w = code · absmax, blocks of 64 in storage order, the 16 codes of QLoRA (arXiv 2305.14314, appendix E).

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError

WeightOI = Float[Tensor, "O I"]
Parameters = dict[str, Tensor]
SCALE_BITS = 16
FLOAT16 = torch.finfo(torch.float16)

NF4_CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Grid(Protocol):
    """A format that weights are rounded to. Adding one: a class here, a line in `GRIDS`, a test."""

    format: ClassVar[str]

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scales (and zero points) for a weight.

        Raises:
            StructureError: the weight's shape does not fit the grid, or it holds NaN or infinity.
        """
        ...

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Nearest values on the grid; a value already there keeps its every bit."""
        ...

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight, scales and zero points included."""
        ...

    def describe(self) -> str:
        """A few words for people."""
        ...


@dataclass(frozen=True)
class IntegerGrid:
    """Uniform codes, one scale (and zero point) per group of inputs."""

    bits: int
    group_size: int
    symmetric: bool
    format: ClassVar[str] = "int"

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (O, G), and zero point (O, G) unless symmetric, from each group's extremes."""
        _check(weight_OI)
        grouped_OGS = self._grouped(weight_OI.float())
        if self.symmetric:
            return {"scale": _half(grouped_OGS.abs().amax(-1) / self._top)}
        low_OG, high_OG = grouped_OGS.amin(-1).clamp_max(0), grouped_OGS.amax(-1).clamp_min(0)
        scale_OG = _half((high_OG - low_OG) / self._top)
        return {"scale": scale_OG, "zero": torch.round(-low_OG / scale_OG).clamp(0, self._top)}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Round to the nearest code and clamp to the range of codes."""
        scale_OG1 = parameters["scale"][..., None]
        codes_OGS = self._grouped(weight_OI.float()).div(scale_OG1).round_()
        if self.symmetric:
            codes_OGS.clamp_(-self._top, self._top)
        else:
            zero_OG1 = parameters["zero"][..., None]
            codes_OGS.add_(zero_OG1).clamp_(0, self._top).sub_(zero_OG1)
        return codes_OGS.mul_(scale_OG1).view_as(weight_OI).add_(0.0)  # −0 becomes 0, which sums and hashes alike

    @property
    def bits_per_weight(self) -> float:
        """Code bits, plus a 16-bit scale and a code-sized zero point per group."""
        return self.bits + (SCALE_BITS + (0 if self.symmetric else self.bits)) / self.group_size

    def describe(self) -> str:
        """Such as `int3, groups of 64, symmetric`."""
        return f"int{self.bits}, groups of {self.group_size}, {'symmetric' if self.symmetric else 'asymmetric'}"

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def _grouped(self, weight_OI: WeightOI) -> Float[Tensor, "O G S"]:
        outputs, inputs = weight_OI.shape
        if inputs % self.group_size:
            near = [size for size in range(1, inputs + 1) if inputs % size == 0]
            best = min(near, key=lambda size: abs(size - self.group_size))
            raise StructureError(f"group_size {self.group_size} does not divide a layer of {inputs} inputs; use {best}")
        return weight_OI.reshape(outputs, inputs // self.group_size, self.group_size)


@dataclass(frozen=True)
class NF4Grid:
    """Sixteen codes at the quantiles of a normal distribution, scaled by each block's largest magnitude."""

    group_size: int = 64
    format: ClassVar[str] = "nf4"

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale: the largest magnitude of each block of `group_size` weights in storage order; the last may be short."""
        _check(weight_OI)
        scale_G = self._blocks(weight_OI.float()).abs().amax(-1)
        return {"scale": torch.where(scale_G > 0, scale_G, 1.0)}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Nearest of the 16 codes, times the block's scale."""
        codes = torch.tensor(NF4_CODES, device=weight_OI.device)
        scale_G1 = parameters["scale"][:, None]
        normal_GS = self._blocks(weight_OI.float()) / scale_G1
        index_GS = torch.bucketize(normal_GS, (codes[1:] + codes[:-1]) / 2)
        return (codes[index_GS] * scale_G1).flatten()[: weight_OI.numel()].view_as(weight_OI)

    @property
    def bits_per_weight(self) -> float:
        """Four bits and a 32-bit absmax per block, as bitsandbytes stores it without double quantization."""
        return 4 + 32 / self.group_size

    def describe(self) -> str:
        """Such as `NF4, blocks of 64`."""
        return f"NF4, blocks of {self.group_size}"

    def _blocks(self, weight_OI: WeightOI) -> Float[Tensor, "G S"]:
        flat = weight_OI.flatten()
        return torch.nn.functional.pad(flat, (0, -len(flat) % self.group_size)).view(-1, self.group_size)


GRIDS: dict[str, type[IntegerGrid] | type[NF4Grid]] = {"int": IntegerGrid, "nf4": NF4Grid}


def _half(scale: Tensor) -> Tensor:
    """Scales rounded to normal float16 numbers, kept as float32.

    Below its normal range float16 loses bits, and then the largest weight would no longer reach the largest code: such
    groups, and groups of zeros, get the smallest normal number, and fitting them again gives it again.
    """
    return scale.to(torch.float16).float().clamp(FLOAT16.smallest_normal, FLOAT16.max)


def _check(weight_OI: WeightOI) -> None:
    if not torch.isfinite(weight_OI).all():
        raise StructureError("a weight holds NaN or infinity; it cannot be quantized")
