"""MXFP4: E2M1 codes with a power-of-two scale (E8M0) per 32 inputs (OCP Microscaling Formats v1.0, section 5.2 and 6.3).

The scale is 2^(floor(log2 absmax) − 2), the standard's own rule, so that the largest weight lands in [4, 8) and is clipped to
6. Two choices follow ggml, whose blocks (`gguf.quants.MXFP4`) we agree with bit for bit: a value halfway between two codes goes
to the smaller one, where the standard recommends the even one, and log2 is rounded to float32, so an absmax just below a power
of two (by 2^-24 to 2^-18, relative) counts as that power and is not clipped. Below 2^-125 ggml's exponent wraps round; ours
stays at the smallest. compressed-tensors differs: where absmax is at least 1.75 times a power of two it doubles the scale.

A power of two times 2 significant bits is exact in float32.

Shapes: O output width, I input width, G groups along the input.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from recoup.structure.grids.base import Grid, Parameters, WeightOI, check
from recoup.structure.grids.fp4 import fixed_groups, round_e2m1

CODE_BITS, SCALE_BITS = 4, 8
E2M1_EXPONENT = 2  # of the largest code, 6 = 1.5 · 2²
E8M0_EXPONENTS = (-127, 127)


@dataclass(frozen=True)
class MXFP4Grid(Grid):
    """E2M1 codes and a power-of-two scale per 32 inputs."""

    format: ClassVar[str] = "mxfp4"
    group_size = 32

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (O, G): a power of two; the smallest, 2^-127, for a group of zeros."""
        check(weight_OI)
        absmax_OG = fixed_groups(weight_OI, self.group_size, "MXFP4").abs().amax(-1)
        # in float64 and then rounded, so that every device finds the same exponent; log2(0) = −inf is clamped
        exponent_OG = torch.log2(absmax_OG.double()).float().floor() - E2M1_EXPONENT
        return {"scale": torch.exp2(exponent_OG.clamp(*E8M0_EXPONENTS).double()).float()}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Round to the nearest code; halfway, to the smaller one."""
        scale_OG1 = parameters["scale"][..., None]
        codes_OGS = round_e2m1(fixed_groups(weight_OI, self.group_size, "MXFP4") / scale_OG1, halfway="to_zero")
        return codes_OGS.mul_(scale_OG1).view_as(weight_OI).add_(0.0)  # −0 becomes 0

    @property
    def bits_per_weight(self) -> float:
        """Four bits, and an 8-bit exponent per group: 4.25."""
        return CODE_BITS + SCALE_BITS / self.group_size

    def describe(self) -> str:
        """`MXFP4, groups of 32`."""
        return f"MXFP4, groups of {self.group_size}"
