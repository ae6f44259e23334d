"""What the FP4 formats share: E2M1 codes, 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with a sign (OCP Microscaling Formats v1.0, table 5).

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids.base import WeightOI, grouped

E2M1_MAX = 6.0
EXPONENT_BITS = 0x7F800000  # of a float32


def round_e2m1(values: Float[Tensor, "*shape"], halfway: Literal["to_even", "to_zero"]) -> Float[Tensor, "*shape"]:
    """Nearest E2M1 numbers; beyond ±6 the last.

    Args:
        values: any numbers, infinity included.
        halfway: where a value in the middle between two codes goes: to the one with an even code (0, 1, 2, 4), as IEEE 754
            and compressed-tensors round, or to the smaller, as ggml rounds.
    """
    magnitude = values.abs()
    # codes step by half of the power of two below them, from 1 (under which they step by a half too) to 4
    power = magnitude.clamp(1, 4).view(torch.int32).bitwise_and_(EXPONENT_BITS).view(torch.float32)
    halves = magnitude.div_(power).mul_(2)  # exact
    halves = halves.round_() if halfway == "to_even" else halves.sub_(0.5).ceil_()
    return halves.mul_(power.mul_(0.5)).clamp_(0, E2M1_MAX).copysign_(values)


def fixed_groups(weight_OI: WeightOI, size: int, name: str) -> Float[Tensor, "O G S"]:
    """The weight in groups of `size` inputs, a size that the format `name` fixes.

    Raises:
        StructureError: the size does not divide the inputs.
    """
    inputs = weight_OI.shape[1]
    if inputs % size:
        raise StructureError(
            f"{name} has groups of {size} inputs, which do not divide {inputs}; use nf4 or int instead"
        )
    return grouped(weight_OI.float(), size)
