"""What the FP4 formats share: E2M1 codes, 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with a sign (OCP Microscaling Formats v1.0, table 5).

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids.base import WeightOI, grouped

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = E2M1[-1]
MIDDLES = tuple((low + high) / 2 for low, high in zip(E2M1[:-1], E2M1[1:], strict=True))


def round_e2m1(values: Float[Tensor, "*shape"], halfway: Literal["to_even", "to_zero"]) -> Float[Tensor, "*shape"]:
    """Nearest E2M1 numbers; beyond ±6 the last.

    Args:
        values: any numbers, infinity included.
        halfway: where a value in the middle between two codes goes: to the one with an even code (0, 1, 2, 4), as IEEE 754
            and compressed-tensors round, or to the smaller, as ggml rounds.
    """
    middles = torch.tensor(MIDDLES, device=values.device)
    if halfway == "to_even":  # above the middles 0.75, 1.75 and 3.5 lies the even code: they go up
        middles[1::2] = torch.nextafter(middles[1::2], torch.zeros_like(middles[1::2]))
    codes = torch.bucketize(values.abs(), middles, out_int32=True)  # a value equal to a middle goes down
    return torch.tensor(E2M1, device=values.device)[codes].copysign_(values)


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


def check_group_size(given: int | None, fixed: int, name: str) -> None:
    """Refuse a group size other than the format's own.

    Raises:
        StructureError: another group size.
    """
    if given != fixed:
        raise StructureError(f"{name} has groups of {fixed}; group_size {given} is not part of the format")
