"""What every grid is: a format that weights are rounded to. Pure functions of tensors, float32 inside.

A grid is fitted to a weight (`fit` gives scales and whatever else the format stores) and projects onto it (`project`). Both
are made so that a value on the grid is exact in float32 and projecting twice changes no bit.

Parameters are named tensors. One with a value per group is laid out (O, G, ...); one for the whole weight has no such axes
(fewer than two dimensions). So the parameters of some groups are a slice (`columns`), and a row permutation is an index.

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError

WeightOI = Float[Tensor, "O I"]
Parameters = dict[str, Tensor]
FLOAT16 = torch.finfo(torch.float16)


class Grid(ABC):
    """A format that weights are rounded to. Adding one: a frozen dataclass in a file here, a line in `GRIDS`, a test.

    Attributes:
        format: its name in `structure.json` and in configs.
        group_size: weights that share one scale, along the input; null: a whole row.
        quick_fit: whether fitting is cheap enough, and stable enough, to follow moving weights at every training step.
        trainable_scale: whether `rescaled` works, that is, whether values are proportional to a free scale.
    """

    format: ClassVar[str]
    quick_fit: ClassVar[bool] = True
    trainable_scale: ClassVar[bool] = False
    group_size: int | None

    @abstractmethod
    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scales (and zero points, …) for a weight.

        Raises:
            StructureError: the weight's shape does not fit the grid, or it holds NaN or infinity.
        """

    @abstractmethod
    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Nearest values on the grid; a value already there keeps its every bit."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Storage per weight, scales and zero points included."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""

    def settings(self) -> dict[str, object]:
        """The fields that make it, for `structure.json`; every grid is a dataclass."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """`parameters` with another scale, rounded to what the format can store; where `trainable_scale`."""
        raise NotImplementedError

    def columns(self, parameters: Parameters, start: int, stop: int) -> Parameters:
        """Parameters of the input columns `start` to `stop`, both on group boundaries."""
        if self.group_size is None:
            return parameters
        groups = slice(start // self.group_size, stop // self.group_size)
        return {key: value[:, groups] if value.ndim > 1 else value for key, value in parameters.items()}


def check(weight_OI: Tensor) -> None:
    """Refuse what no grid can hold.

    Raises:
        StructureError: NaN or infinity.
    """
    if not torch.isfinite(weight_OI).all():
        raise StructureError("a weight holds NaN or infinity; it cannot be quantized")


def grouped(weight_OI: WeightOI, size: int | None) -> Float[Tensor, "O G S"]:
    """The weight in groups of `size` inputs; whole rows for null.

    Raises:
        StructureError: the size does not divide the inputs.
    """
    outputs, inputs = weight_OI.shape
    size = size or inputs
    if inputs % size:
        divisors = [divisor for divisor in range(1, inputs + 1) if inputs % divisor == 0]
        best = min(divisors, key=lambda divisor: abs(divisor - size))
        raise StructureError(f"group_size {size} does not divide a layer of {inputs} inputs; use {best}")
    return weight_OI.reshape(outputs, inputs // size, size)


def half(scale: Tensor) -> Tensor:
    """Scales rounded to normal float16 numbers, kept as float32.

    Below its normal range float16 loses bits, and then the largest weight would no longer reach the largest code: such
    groups, and groups of zeros, get the smallest normal number, and fitting them again gives it again.
    """
    return scale.to(torch.float16).float().clamp(FLOAT16.smallest_normal, FLOAT16.max)
