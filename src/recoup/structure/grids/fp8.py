"""FP8: E4M3 floating-point codes (arXiv 2209.05433, table 1: up to ±448, no infinity) times a scale of absmax / 448.

One scale per output channel, per group of inputs, or per tensor, as compressed-tensors and vLLM store them. Codes are rounded
to the nearest, halfway to the even one, as hardware does.

Scales are rounded to bfloat16, as they lie in checkpoints of bfloat16 models: its 8 significant bits times a code's 4 are exact
in float32, and fitting again to what was projected gives the same scale. compressed-tensors keeps float32 scales for float32
models; such scales, read from a checkpoint, are kept as they are, and the nearest code is still the one they came from, since
a rounded product is off by far less than half a step between codes.

Shapes: O output width, I input width, G groups along the input.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids.base import Grid, Parameters, WeightOI, check, grouped

E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max  # 448
CODE_BITS, SCALE_BITS = 8, 16


@dataclass(frozen=True)
class FP8Grid(Grid):
    """E4M3 codes with one scale per output channel, per group of `group_size` inputs, or `per_tensor`.

    Raises:
        StructureError: a group size and `per_tensor` at once.
    """

    group_size: int | None = None
    per_tensor: bool = False
    format: ClassVar[str] = "fp8"
    trainable_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.per_tensor and self.group_size is not None:
            raise StructureError(f"FP8: per_tensor leaves no groups of {self.group_size}; set group_size to null")

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale (O, G), or without dimensions per tensor, from the largest magnitudes."""
        check(weight_OI)
        magnitude_OGS = grouped(weight_OI.float(), self.group_size).abs()
        return {"scale": _stored((magnitude_OGS.amax() if self.per_tensor else magnitude_OGS.amax(-1)) / E4M3_MAX)}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Round to the nearest code; beyond ±448 scales, to the last."""
        scale = parameters["scale"][..., None]
        codes_OGS = grouped(weight_OI.float(), self.group_size).div(scale).clamp_(-E4M3_MAX, E4M3_MAX)
        return codes_OGS.to(E4M3).float().mul_(scale).view_as(weight_OI).add_(0.0)  # −0 becomes 0

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """Other scales, positive, as bfloat16."""
        return {**parameters, "scale": _stored(scale_OG)}

    @property
    def bits_per_weight(self) -> float:
        """Code bits, plus a 16-bit scale per group; scales per channel or tensor round to nothing."""
        return CODE_BITS + (SCALE_BITS / self.group_size if self.group_size else 0.0)

    def describe(self) -> str:
        """Such as `FP8 (E4M3), per channel`."""
        groups = f"groups of {self.group_size}" if self.group_size else "per channel"
        return f"FP8 (E4M3), {'per tensor' if self.per_tensor else groups}"


def _stored(scale: Tensor) -> Tensor:
    """Scales rounded to normal bfloat16 numbers, kept as float32."""
    bfloat16 = torch.finfo(torch.bfloat16)
    return scale.to(torch.bfloat16).float().clamp(bfloat16.smallest_normal, bfloat16.max)
