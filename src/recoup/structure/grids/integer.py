"""Uniform integer codes: w = scale (code − zero).

Scales are rounded to float16 (11 significant bits) and codes have at most 8, so the product fits float32's 24. Symmetric
codes run from −(2^(bits−1) − 1) to 2^(bits−1) − 1 and always include the end that set the scale; `full_range` adds the code
−2^(bits−1), which checkpoints made elsewhere use.

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recoup.structure.grids.base import Grid, Parameters, WeightOI, check, grouped, half

SCALE_BITS = 16


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """Uniform codes, one scale (and zero point) per group of inputs, or per output channel where `group_size` is null."""

    bits: int
    group_size: int | None
    symmetric: bool
    full_range: bool = False
    format: ClassVar[str] = "int"
    trainable_scale: ClassVar[bool] = True

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (O, G), and zero point (O, G) unless symmetric, from each group's extremes."""
        check(weight_OI)
        grouped_OGS = grouped(weight_OI.float(), self.group_size)
        if self.symmetric:
            return {"scale": half(grouped_OGS.abs().amax(-1) / self._top)}
        low_OG, high_OG = grouped_OGS.amin(-1).clamp_max(0), grouped_OGS.amax(-1).clamp_min(0)
        scale_OG = half((high_OG - low_OG) / self._top)
        return {"scale": scale_OG, "zero": torch.round(-low_OG / scale_OG).clamp(0, self._top)}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Round to the nearest code and clamp to the range of codes."""
        scale_OG1 = parameters["scale"][..., None]
        codes_OGS = grouped(weight_OI.float(), self.group_size).div(scale_OG1).round_()
        if self.symmetric:
            codes_OGS.clamp_(-self._top - self.full_range, self._top)
        else:
            zero_OG1 = parameters["zero"][..., None]
            codes_OGS.add_(zero_OG1).clamp_(0, self._top).sub_(zero_OG1)
        return codes_OGS.mul_(scale_OG1).view_as(weight_OI).add_(0.0)  # −0 becomes 0, which sums and hashes alike

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """Other scales, as float16; zero points stay."""
        return {**parameters, "scale": half(scale_OG)}

    @property
    def bits_per_weight(self) -> float:
        """Code bits, plus a 16-bit scale and a code-sized zero point per group; per-channel scales round to nothing."""
        overhead = SCALE_BITS + (0 if self.symmetric else self.bits)
        return self.bits + (overhead / self.group_size if self.group_size else 0.0)

    def describe(self) -> str:
        """Such as `int3, groups of 64, symmetric`."""
        groups = f"groups of {self.group_size}" if self.group_size else "per channel"
        return f"int{self.bits}, {groups}, {'symmetric' if self.symmetric else 'asymmetric'}"

    @property
    def _top(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1
