"""Which compressed-tensors scheme a grid is, and what of it is stored; no library is needed to say so.

Names and values are those of `compressed_tensors/quantization/quant_args.py` and its presets W4A16, W8A16, NVFP4A16 and MXFP4A16
(0.20). Codes are stored around zero: an asymmetric code and its zero point, 0 to 2^bits − 1 here, both less 2^(bits − 1).
`weight_global_scale` divides, as `global` of our NVFP4 does.

What vLLM takes is in its `compressed_tensors` and Marlin code (`WNA16_SUPPORTED_BITS`, `MARLIN_SUPPORTED_GROUP_SIZES`).

Shapes: O output width, G groups along the input.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recoup.errors import ExportError
from recoup.structure.grids import Grid, IntegerGrid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid
from recoup.structure.spec import Constraint

VLLM_BITS = (4, 8)
VLLM_GROUPS = (None, 32, 64, 128)  # null: a whole row
FLOAT4 = {"num_bits": 4, "type": "float", "symmetric": True}


@dataclass(frozen=True)
class Scheme:
    """A format of compressed-tensors, and the arguments of its `QuantizationArgs`."""

    format: str
    args: tuple[tuple[str, object], ...]

    def get(self, name: str) -> object:
        """One argument, null where it is not given."""
        return dict(self.args).get(name)


def scheme_of(name: str, grid: Grid) -> Scheme:
    """The scheme that stores `grid`.

    Args:
        name: of the weight, for the error.
        grid: of the weight.

    Raises:
        ExportError: compressed-tensors has none; the message names a target that holds the grid.
    """
    if isinstance(grid, IntegerGrid):
        args = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, **_groups(grid.group_size)}
        return Scheme("pack-quantized", tuple(args.items()))
    if isinstance(grid, FP8Grid):
        groups = {"strategy": "tensor"} if grid.per_tensor else _groups(grid.group_size)
        return Scheme("float-quantized", tuple({"num_bits": 8, "type": "float", "symmetric": True, **groups}.items()))
    if isinstance(grid, MXFP4Grid):
        args = {**FLOAT4, **_groups(grid.group_size), "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
        return Scheme("mxfp4-pack-quantized", tuple(args.items()))
    if isinstance(grid, NVFP4Grid):
        e4m3 = "torch.float8_e4m3fn"
        groups = {"strategy": "tensor_group", "group_size": grid.group_size}
        return Scheme(
            "nvfp4-pack-quantized", tuple({**FLOAT4, **groups, "scale_dtype": e4m3, "zp_dtype": e4m3}.items())
        )
    target = "safetensors" if grid.format == "nf4" else "gguf"
    raise ExportError(f"{name}: compressed-tensors has no format for {grid.describe()}; use to: {target}")


def qparams(constraint: Constraint) -> dict[str, Tensor]:
    """Scales, zero points and global scale under the names, types and shapes that the library's compressors take."""
    parameters, grid = {key: value.cpu() for key, value in constraint.parameters.items()}, constraint.grid
    scale = parameters["scale"]
    found = {"weight_scale": scale if scale.ndim else scale[None]}
    if isinstance(grid, IntegerGrid) and not grid.symmetric:
        found["weight_zero_point"] = (parameters["zero"] - 2 ** (grid.bits - 1)).to(torch.int8)
    if isinstance(grid, NVFP4Grid):
        found["weight_global_scale"] = parameters["global"].reshape(1)
    return found


def unpacked_on_load(schemes: Iterable[Scheme]) -> bool:
    """Whether transformers must unpack the weights as it loads them, and not at the first forward pass, as it does by default.

    transformers 5.23 with compressed-tensors 0.20: by default, zero points come in a shape that is not the packed one's, and
    FP4 weights come as bfloat16, which float32 activations cannot be multiplied with. Unpacking on load knows one scheme.

    Raises:
        ExportError: there is more than one scheme, and one of them needs it.
    """
    kinds = list(dict.fromkeys(schemes))
    needing = [kind for kind in kinds if not kind.get("symmetric") or kind.format.endswith("fp4-pack-quantized")]
    if needing and len(kinds) > 1:
        raise ExportError(
            f"transformers reads asymmetric integers and FP4 from compressed-tensors only where every packed weight has the "
            f"same format, and here there are {len(kinds)}; use to: safetensors"
        )
    return bool(needing)


def scheme_notes(schemes: Iterable[Scheme]) -> tuple[str, ...]:
    """A line for each kind of scheme that a program does not take, or does not take exactly."""
    notes = []
    for scheme in dict.fromkeys(schemes):
        bits, size = scheme.get("num_bits"), scheme.get("group_size")
        if scheme.format == "pack-quantized" and bits not in VLLM_BITS:
            notes.append(f"int{bits}: transformers reads it, vLLM takes {VLLM_BITS[0]} and {VLLM_BITS[1]} bits only")
        elif scheme.format == "pack-quantized" and size not in VLLM_GROUPS:
            notes.append(f"groups of {size}: transformers reads them, vLLM takes 32, 64, 128 or whole rows only")
        elif scheme.format == "float-quantized" and size is not None:
            notes.append(
                f"FP8 in groups of {size}: transformers reads it, vLLM takes a scale per channel or tensor only"
            )
        elif scheme.format == "nvfp4-pack-quantized":
            notes.append("NVFP4: the file holds it exactly, transformers unpacks it to bfloat16 and so rounds it")
    return tuple(notes)


def _groups(size: int | None) -> dict[str, object]:
    return {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
