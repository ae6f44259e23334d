"""Checkpoints of compressed-tensors (llm-compressor, vLLM): integers, FP8, NVFP4 and MXFP4, read without the library.

A module's tensors say what it is, so that models of several formats need no matching of layer names:

    `weight_packed` int32, `weight_shape`     pack-quantized: codes packed along the inputs, stored with 2^(bits−1) added
    `weight_packed` uint8                     NVFP4 or MXFP4: two E2M1 codes a byte, the first in the low nibble
    `weight` int8 or float8_e4m3fn            int-, float- and naive-quantized
    `weight_scale`                            (1), (O, 1), (O, G), or per block of rows and inputs; NVFP4: float8, and
                                              `weight_global_scale` divides it; MXFP4: uint8 exponents
    `weight_zero_point`                       of asymmetric integers: int8, or packed along the outputs

Source: compressed-tensors 0.20 `compressors/`. The library multiplies in the scale's type, often bfloat16; here the product is
exact in float32. Activation quantization is the server's business: weights are what is repaired. Formats that the library
itself no longer reads (sparse-24-bitmask, sparse-bitmask, marlin-24), and rotated weights, are refused.

Shapes: O output width, I input width, G groups along the input.
"""

import math
from typing import Any

import torch
from torch import Tensor

from recoup.models.foreign.bits import WORD_BITS, unpack
from recoup.models.foreign.checkpoint import Checkpoint, Matrix, Reader, in_order, integer_matrix, permuted_matrix
from recoup.structure.grids.base import grouped
from recoup.structure.grids.fp8 import E4M3, FP8Grid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid

# by 4-bit code; the highest bit is the sign (OCP Microscaling Formats v1.0, table 5)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BYTE = 8
E8M0_BIAS = 127


def read(checkpoint: Checkpoint, module: str) -> Matrix:
    """The matrix of a module.

    Raises:
        SourceError: a format that is not read here, or a tensor is missing.
    """
    _check_readable(checkpoint)
    if checkpoint.has(f"{module}.weight_packed"):
        packed = checkpoint.get(f"{module}.weight_packed")
        return _fp4(checkpoint, module, packed) if packed.dtype == torch.uint8 else _packed(checkpoint, module, packed)
    weight = checkpoint.get(f"{module}.weight")
    if weight.dtype == torch.int8:
        return _integers(checkpoint, module, weight)
    if weight.dtype == E4M3:
        scale_OG, size = _scale(checkpoint, module, weight.shape)
        weight_OGS = grouped(weight.float(), size) * scale_OG[..., None]
        return Matrix(weight_OGS.flatten(1).add_(0.0), FP8Grid(size), {"scale": scale_OG.where(scale_OG != 0, 1.0)})
    return Matrix(weight.float(), free="stored uncompressed")


def _check_readable(checkpoint: Checkpoint) -> None:
    config = checkpoint.quantization
    sparse = (config.get("sparsity_config") or {}).get("format", "dense")
    for name in (str(config.get("format")), str(sparse)):
        if "bitmask" in name or "marlin" in name:
            raise checkpoint.refuse(f"compressed-tensors format {name}, dropped by the library itself", "save it dense")
    if (config.get("transform_config") or {}).get("config_groups"):
        raise checkpoint.refuse("its weights are rotated (transform_config)", "recoup cannot repair these yet")


def _packed(checkpoint: Checkpoint, module: str, packed: Tensor) -> Matrix:
    """pack-quantized."""
    outputs, inputs = checkpoint.get(f"{module}.weight_shape").tolist()
    widths = sorted(bits for bits in _widths(checkpoint) if math.ceil(inputs * bits / WORD_BITS) == packed.shape[1])
    if not widths:
        raise checkpoint.refuse(f"{module} holds codes of a width that its config does not name", "download it again")
    bits = widths[0]
    scale_OG, _ = _scale(checkpoint, module, (outputs, inputs))
    codes_OI, zero_OG = unpack(packed, bits, inputs), _zero(checkpoint, module, scale_OG, bits)
    groups = f"{module}.weight_g_idx"
    if checkpoint.has(groups) and not in_order(checkpoint.get(groups), scale_OG.shape[1]):
        return permuted_matrix(codes_OI, scale_OG, zero_OG, checkpoint.get(groups))
    return integer_matrix(codes_OI, scale_OG, zero_OG, bits)


def _integers(checkpoint: Checkpoint, module: str, codes_OI: Tensor) -> Matrix:
    """int-quantized and naive-quantized: a byte a code."""
    widths = _widths(checkpoint)
    bits = widths.pop() if len(widths) == 1 else BYTE
    scale_OG, _ = _scale(checkpoint, module, codes_OI.shape)
    middle = 2 ** (bits - 1)
    return integer_matrix(codes_OI.int() + middle, scale_OG, _zero(checkpoint, module, scale_OG, bits), bits)


def _fp4(checkpoint: Checkpoint, module: str, packed: Tensor) -> Matrix:
    """NVFP4 or MXFP4, which the type of the scale tells apart."""
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(1).int()
    codes_OI = torch.tensor(E2M1)[nibbles]
    stored_OG = checkpoint.get(f"{module}.weight_scale")
    grid: NVFP4Grid | MXFP4Grid
    if stored_OG.dtype == torch.uint8:
        grid, step_OG = MXFP4Grid(), torch.exp2(stored_OG.double() - E8M0_BIAS).float()
        parameters = {"scale": step_OG}
    else:
        grid, parameters = NVFP4Grid(), {"scale": stored_OG.float(), "global": _global_scale(checkpoint, module)}
        step_OG = parameters["scale"] / parameters["global"]
        parameters["scale"] = parameters["scale"].where(step_OG != 0, 1.0)
    weight_OGS = grouped(codes_OI, grid.group_size) * step_OG[..., None]
    return Matrix(weight_OGS.flatten(1).add_(0.0), grid, parameters)


def _global_scale(checkpoint: Checkpoint, module: str) -> Tensor:
    return checkpoint.get(f"{module}.weight_global_scale").float().reshape(())


def _scale(checkpoint: Checkpoint, module: str, shape_OI: Any) -> tuple[Tensor, int | None]:
    """Scales (O, G) and the size of a group; one for all, or for a block of rows, is repeated."""
    outputs, inputs = shape_OI
    scale = checkpoint.get(f"{module}.weight_scale").float()
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale
    if scale.ndim != 2 or outputs % scale.shape[0] or inputs % scale.shape[1]:  # noqa: PLR2004  rows × groups
        raise checkpoint.refuse(f"{module} has scales of shape {tuple(scale.shape)}", "recoup needs whole blocks")
    scale_OG = scale.repeat_interleave(outputs // scale.shape[0], dim=0).contiguous()
    return scale_OG, None if scale_OG.shape[1] == 1 else inputs // scale_OG.shape[1]


def _zero(checkpoint: Checkpoint, module: str, scale_OG: Tensor, bits: int) -> Tensor:
    """Zero points (O, G) among codes from 0; the middle for symmetric ones."""
    middle, name = 2 ** (bits - 1), f"{module}.weight_zero_point"
    if not checkpoint.has(name):
        return torch.full_like(scale_OG, middle)
    stored = checkpoint.get(name)
    if stored.dtype == torch.int32:
        return unpack(stored.T, bits, len(scale_OG)).T
    return (stored.int() + middle).expand_as(scale_OG)


def _widths(checkpoint: Checkpoint) -> set[int]:
    """Bits of the integer weights in the config's groups."""
    groups = (checkpoint.quantization.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups if isinstance(group, dict)]
    return {int(entry["num_bits"]) for entry in weights if entry.get("type", "int") == "int" and "num_bits" in entry}


READER = Reader(
    label="compressed-tensors",
    markers=(".weight_scale", ".bitmask"),
    parts=(
        ".weight", ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
        ".weight_global_scale",
    ),
    read=read,
    serving=(
        ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point",
        ".q_scale", ".k_scale", ".v_scale",
    ),
)  # fmt: skip
