"""NVFP4: E2M1 codes with an E4M3 scale per 16 inputs and one float32 global scale per tensor.

As compressed-tensors 0.20 (`quantization/utils/helpers.py`) fits it, after NVIDIA's recipe (arXiv 2509.25149, appendix B):
global = 448 · 6 / absmax of the tensor; scale = E4M3(global · absmax of the group / 6); weight = code · (scale / global).
So `global` divides, as `weight_global_scale` does there; TensorRT Model Optimizer stores its inverse (`weight_scale_2`). Codes
halfway between two go to the even one. A scale that rounds to 0 becomes 1/8, as there.

scale / global is rounded to float32 and so is its product with a code, always in this order; the nearest code of a value so
made is its own, since it is off by 2^-23, relative, and the middles between codes are an eighth away at least.

Shapes: O output width, I input width, G groups along the input.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from recoup.structure.grids.base import Grid, Parameters, WeightOI, check
from recoup.structure.grids.fp4 import E2M1_MAX, fixed_groups, round_e2m1

CODE_BITS, SCALE_BITS = 4, 8
E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max  # 448
ZERO_SCALE = 0.125


@dataclass(frozen=True)
class NVFP4Grid(Grid):
    """E2M1 codes, an E4M3 scale per 16 inputs, and a global scale."""

    format: ClassVar[str] = "nvfp4"
    group_size = 16

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (O, G), the E4M3 numbers as float32, and `global`, which divides them."""
        check(weight_OI)
        absmax_OG = fixed_groups(weight_OI, self.group_size, "NVFP4").abs().amax(-1)
        smallest = torch.finfo(torch.float32).smallest_normal
        ratio = E4M3_MAX * E2M1_MAX / absmax_OG.amax().clamp_min(smallest)
        ratio = torch.where(torch.isfinite(ratio), ratio, 1.0)  # a tensor of zeros
        scale_OG = (absmax_OG / E2M1_MAX * ratio).clamp_max(E4M3_MAX).to(E4M3).float()
        return {"scale": torch.where(scale_OG > 0, scale_OG, ZERO_SCALE), "global": ratio}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Round to the nearest code; halfway, to the even one."""
        step_OG1 = (parameters["scale"] / parameters["global"])[..., None]
        codes_OGS = round_e2m1(fixed_groups(weight_OI, self.group_size, "NVFP4") / step_OG1, halfway="to_even")
        return codes_OGS.mul_(step_OG1).view_as(weight_OI).add_(0.0)  # −0 becomes 0

    @property
    def bits_per_weight(self) -> float:
        """Four bits, and an 8-bit scale per group: 4.5."""
        return CODE_BITS + SCALE_BITS / self.group_size

    def describe(self) -> str:
        """`NVFP4, groups of 16`."""
        return f"NVFP4, groups of {self.group_size}"
