"""Weights as GGUF tensors: which type holds a weight, and its bytes.

What keeps a structure is written bit for bit where a type of llama.cpp can hold it: its own block formats as they are, and
symmetric integer codes as Q4_0, Q5_0 or Q8_0, which are w = scale · code too, with a float16 scale per 32 weights. Everything
else on a grid is a number like any other, in float16 or bfloat16 if those hold it exactly. What is free is rounded to the type
that the caller chose. Sources: ggml-org/llama.cpp, ggml/src/ggml-common.h (block formats); gguf/quants.py (rounding).

Shapes: O output width, I input width, G groups along the input, S group size.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from jaxtyping import Float
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids import IntegerGrid, Parameters
from recoup.structure.grids.base import Grid, WeightOI
from recoup.structure.grids.gguf_blocks import LAYOUTS, to_bytes
from recoup.structure.grids.gguf_legacy import Q40Grid, Q50Grid, Q80Grid
from recoup.structure.spec import Constraint

Free: TypeAlias = Literal["f32", "f16", "bf16", "q8_0"]
BLOCK = 32  # weights per scale in Q4_0, Q5_0 and Q8_0
SYMMETRIC_FORMATS = {4: Q40Grid(), 5: Q50Grid(), 8: Q80Grid()}  # by the bits of a code


@dataclass(frozen=True)
class Storage:
    """How one weight is written: its type and, for blocks, the grid and parameters that make the bytes."""

    type: Type
    exact: bool  # whether every bit of the weight in float32 comes back
    grid: Grid | None = None
    parameters: Parameters = field(default_factory=dict)

    def num_bytes(self, num_weights: int) -> int:
        """Bytes of so many weights in this type."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return num_weights // block * block_bytes


def storage(weight: Float[Tensor, "..."], constraint: Constraint | None, free: Free) -> Storage:
    """How to write a weight, laid out as `constraint` is (output × input), float32.

    Vectors (norms, biases) are float32, as llama.cpp wants them.
    """
    if weight.ndim == 1:
        return Storage(Type.F32, exact=True)
    if constraint is None or constraint.grid is None:
        return _free(weight, free)
    blocks = _blocks(weight, constraint.grid, constraint.parameters, masked=constraint.mask_OI is not None)
    if blocks is not None:
        return blocks
    for type_ in (Type.F16, Type.BF16):
        if _holds(type_, weight):
            return Storage(type_, exact=True)
    return _free(weight, free)


def encode(weight: Float[Tensor, "..."], how: Storage) -> npt.NDArray[np.generic]:
    """The weight's bytes, row after row.

    Raises:
        StructureError: a block type was asked for and does not hold the weight bit for bit.
    """
    if how.grid is not None and how.grid.format in LAYOUTS:
        return to_bytes(how.grid, weight, how.parameters)
    data = quantize(weight.numpy(), how.type)
    if how.exact and not np.array_equal(dequantize(data, how.type), weight.numpy()):
        raise StructureError(f"{how.type.name} does not hold a weight of the grid it was chosen for")
    return data


def _blocks(weight_OI: WeightOI, grid: Grid, parameters: Parameters, *, masked: bool) -> Storage | None:
    """Block storage, if there is a type with exactly these values; they are taken to be on the grid, and `encode` checks."""
    if isinstance(grid, IntegerGrid):
        found = _integer_blocks(grid, parameters, weight_OI.shape[1])
        if found is None:
            return None
        grid, parameters = found
    elif grid.format not in LAYOUTS:
        return None
    # a mask's zeros need not be on a grid with a minimum
    if masked and not torch.equal(grid.project(weight_OI, parameters), weight_OI):
        return None
    return Storage(Type[grid.format.upper()], exact=True, grid=grid, parameters=parameters)


def _integer_blocks(grid: IntegerGrid, parameters: Parameters, inputs: int) -> tuple[Grid, Parameters] | None:
    """The block format with the same codes and scales; each scale is repeated for every 32 weights that share it."""
    size = grid.group_size or inputs
    scale_OG = parameters["scale"]
    if not grid.symmetric or size % BLOCK or not torch.equal(scale_OG.to(torch.float16).float(), scale_OG):
        return None
    bits = min(bits for bits in SYMMETRIC_FORMATS if bits >= grid.bits)
    scale_OG = scale_OG.repeat_interleave(size // BLOCK, dim=1)
    return SYMMETRIC_FORMATS[bits], {"scale": scale_OG, "pick_scale": scale_OG}


def _free(weight: Float[Tensor, "..."], free: Free) -> Storage:
    """The type chosen for free weights; float16 where blocks do not fit, float32 where float16 would overflow."""
    type_ = Type[free.upper()]
    if type_ == Type.Q8_0 and weight.shape[-1] % BLOCK:
        type_ = Type.F16
    if type_ == Type.F16 and weight.abs().max() > torch.finfo(torch.float16).max:
        type_ = Type.F32
    return Storage(type_, exact=type_ == Type.F32)


def _holds(type_: Type, weight: Float[Tensor, "..."]) -> bool:
    dtype = {Type.F16: torch.float16, Type.BF16: torch.bfloat16}[type_]
    return torch.equal(weight.to(dtype).float(), weight)
