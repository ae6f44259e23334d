"""NF4: the 16 codes of QLoRA (arXiv 2305.14314, appendix E) at the quantiles of a normal distribution, times absmax.

Blocks run in storage order. Where the block size divides the inputs, as in every common model, blocks are groups of a row
and scales are laid out (O, G); else they run over row ends and scales are a flat list. Codes, absmax and values agree bit for
bit with bitsandbytes 0.50 in float32 (`quantize_4bit` and `dequantize_4bit`): codes are picked with the reciprocal of absmax
(a short last block: by division), and halfway between two codes the lower one wins. We differ where

- weights have 16 bits: it takes the same codes and absmax, but rounds what it gives back to 16 bits;
- a block holds zeros, or nothing above 1e-38: the scale is 1, not 0, so that a scale can always be divided by;
- rows are a multiple of 16 but not of the block size: its AVX512 kernel (`csrc/cpu_ops.cpp`, 0.50.2) then takes scales of
  other blocks. We give what its quantizer and its PyTorch code mean.

Double quantization (section 3): absmax less its mean is itself rounded to 8 bits in blocks of 256, and the scale is what comes
back. bitsandbytes picks codes with absmax as it was, so `fit` keeps that too; a weight on the grid already keeps its codes.
For the 8-bit rounding we follow its CPU kernel (`csrc/cpu_ops.cpp`), which looks values up at a resolution of 2/65535; its GPU
kernel searches exactly, and differs where a value lies within that of the middle between two codes.

For checkpoints of bitsandbytes: `NF4Grid.codes`, `pack_nf4`, `unpack_nf4`, `dynamic_map`, `dequantize_absmax`.

Shapes: O output width, I input width, G groups along the input (or blocks in storage order), S group size, N blocks of absmax.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recoup.structure.grids.base import Grid, Parameters, WeightOI, check

NF4_CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
ABSMAX_BLOCK = 256  # absmax values that share one second-level scale (QLoRA, section 3)
TINY = 1e-38  # bitsandbytes takes the reciprocal of no smaller absmax; weights that small count as zeros here
DECADES = 7  # of the 8-bit dynamic map
CELLS = 16  # a unit; middles between codes are 0.08 apart at least, and 0.0016 from an edge
LOOKUP_STEPS = 65535  # steps from −1 to 1 in the CPU kernel's table


def pack_nf4(codes: UInt8[Tensor, "*shape"]) -> UInt8[Tensor, " bytes"]:
    """Two codes a byte in storage order, the first in the high nibble; an odd count ends in the code of zero.

    Source: bitsandbytes `backends/default/ops.py`, which pads what it quantizes with zeros.
    """
    flat = codes.flatten()
    flat = torch.nn.functional.pad(flat, (0, len(flat) % 2), value=NF4_CODES.index(0.0))
    return (flat[::2] << 4) | flat[1::2]


def unpack_nf4(packed: UInt8[Tensor, "*shape"], count: int) -> UInt8[Tensor, " count"]:
    """The first `count` codes of bytes packed by `pack_nf4`."""
    flat = packed.flatten()
    return torch.stack([flat >> 4, flat & 0xF], dim=1).flatten()[:count]


def nearest_codes(normal: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Which of the 16 codes is nearest; halfway, the lower.

    The line from −1 to 1 is cut into cells so small that each holds one middle between codes at most: the cell says which
    code is the lowest possible, and one comparison the rest. (A binary search, `torch.bucketize`, takes several times as long.)
    """
    middles = _middles(torch.tensor(NF4_CODES, device=normal.device))
    edges = torch.arange(2 * CELLS + 1, device=normal.device) / CELLS - 1
    lowest = torch.bucketize(edges, middles, out_int32=True)
    flat = normal.flatten()
    low = lowest.index_select(0, flat.clamp(-1, 1).add_(1).mul_(CELLS).int())
    above = torch.nn.functional.pad(middles, (0, 1), value=torch.inf).index_select(0, low)
    return (low + (flat > above)).to(torch.uint8).view(normal.shape)


@cache
def dynamic_map() -> Float[Tensor, "256"]:
    """The 256 values of the signed 8-bit dynamic type (arXiv 1511.04561), ascending from −0.993 to 1.

    Each decade 10^(e−7)…10^(e−6), e from 0 to 6, holds 2^e values of either sign, the centres of equal parts; 0 and 1 make
    them 256. Source: bitsandbytes `create_dynamic_map`, down to the order of its float32 operations.
    """
    values = [0.0, 1.0]
    for exponent in range(DECADES):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        centres = (10 ** (exponent - DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += centres + [-centre for centre in centres]
    return torch.tensor(sorted(values))


def dequantize_absmax(
    codes: UInt8[Tensor, "*shape"], scale_N: Float[Tensor, " N"], offset: Tensor, values: Float[Tensor, "256"]
) -> Float[Tensor, "*shape"]:
    """Scales from double-quantized absmax: values[code] · scale of its block of 256 + offset.

    Args:
        codes: 8-bit codes in storage order (bitsandbytes: `absmax`).
        scale_N: the largest magnitude of every 256 of them (`nested_absmax`).
        offset: the mean taken off before (`nested_offset`).
        values: what the codes mean (`nested_quant_map`, `dynamic_map`).
    """
    scale = scale_N.repeat_interleave(ABSMAX_BLOCK)[: codes.numel()]
    return (values[codes.flatten().long()] * scale + offset).view(codes.shape)


def quantize_absmax(
    absmax: Float[Tensor, "*shape"],
) -> tuple[UInt8[Tensor, "*shape"], Float[Tensor, " N"], Float[Tensor, ""]]:
    """Codes, scales and offset that `dequantize_absmax` takes, as bitsandbytes' CPU kernel picks them."""
    flat = absmax.flatten()
    offset = flat.mean()
    blocks_NS = _blocks(flat - offset, ABSMAX_BLOCK)
    scale_N = blocks_NS.abs().amax(-1)
    normal = (blocks_NS * (1 / scale_N.where(scale_N > 0, 1.0))[:, None]).flatten()[: len(flat)].clamp(-1, 1)
    looked_up = ((normal + 1) * 0.5 * LOOKUP_STEPS + 0.5).floor() * 2 / LOOKUP_STEPS - 1
    values = dynamic_map().to(absmax.device)
    codes = torch.bucketize(looked_up, _middles(values), out_int32=True).to(torch.uint8)
    zero_block = (scale_N == 0).repeat_interleave(ABSMAX_BLOCK)[: len(flat)]
    return codes.where(~zero_block, 0).view(absmax.shape), scale_N, offset


@dataclass(frozen=True)
class NF4Grid(Grid):
    """Sixteen codes at the quantiles of a normal distribution, scaled by each block's largest magnitude."""

    group_size: int = 64
    double_quantized: bool = False
    format: ClassVar[str] = "nf4"
    trainable_scale: ClassVar[bool] = True

    def fit(self, weight_OI: WeightOI) -> Parameters:
        """Scale: the largest magnitude of each block of `group_size` weights in storage order; the last may be short.

        With double quantization also `absmax`, the scale before it, with which codes are picked, and what a checkpoint
        stores: `absmax_codes`, `absmax_scale` (N) and `absmax_offset`.
        """
        check(weight_OI)
        outputs, inputs = weight_OI.shape
        absmax = _blocks(weight_OI.float().flatten(), self.group_size).abs().amax(-1)
        absmax = absmax if inputs % self.group_size else absmax.view(outputs, -1)
        if not self.double_quantized:
            return {"scale": torch.where(absmax < TINY, 1.0, absmax)}
        parameters = _double_quantized(absmax)
        # what is scaled by 0 comes back as zeros, and an infinite absmax picks the code of zero beside a scale of 1
        lost = parameters["scale"].abs() < TINY
        return {**parameters, "scale": parameters["scale"].where(~lost, 1.0), "absmax": absmax.where(~lost, torch.inf)}

    def project(self, weight_OI: WeightOI, parameters: Parameters) -> WeightOI:
        """Nearest of the 16 codes, times the block's scale."""
        codes = self.codes(weight_OI, parameters)
        values_GS = _blocks(_values(codes).flatten(), self.group_size)
        values_GS *= parameters["scale"].reshape(-1, 1)
        return values_GS.flatten()[: codes.numel()].view_as(weight_OI).add_(0.0)  # a negative scale makes −0 of 0

    def codes(self, weight_OI: WeightOI, parameters: Parameters) -> UInt8[Tensor, "O I"]:
        """Which of the 16 codes each weight takes."""
        weight_GS = _blocks(weight_OI.float().flatten(), self.group_size)
        short = weight_OI.numel() % self.group_size > 0
        scale_G1 = parameters["scale"].reshape(-1, 1)
        codes_GS = nearest_codes(_normal(weight_GS, scale_G1, short))
        if "absmax" in parameters:
            kept_GS = _values(codes_GS) * scale_G1 == weight_GS
            with_absmax_GS = nearest_codes(_normal(weight_GS, parameters["absmax"].reshape(-1, 1), short))
            codes_GS = torch.where(kept_GS, codes_GS, with_absmax_GS)
        return codes_GS.flatten()[: weight_OI.numel()].view(weight_OI.shape)

    def rescaled(self, parameters: Parameters, scale_OG: Tensor) -> Parameters:
        """Other scales, positive, and double-quantized where these are."""
        scale_OG = scale_OG.clamp_min(TINY)
        return _double_quantized(scale_OG) if self.double_quantized else {**parameters, "scale": scale_OG}

    @property
    def bits_per_weight(self) -> float:
        """Four bits and a 32-bit absmax per block; double-quantized: 8 bits, and 32 for every 256 of them."""
        absmax_bits = 8 + 32 / ABSMAX_BLOCK if self.double_quantized else 32
        return 4 + absmax_bits / self.group_size

    def describe(self) -> str:
        """Such as `NF4, blocks of 64, double-quantized`."""
        return f"NF4, blocks of {self.group_size}" + (", double-quantized" if self.double_quantized else "")


def _double_quantized(absmax: Tensor) -> Parameters:
    """Scales after double quantization, and what is stored of them."""
    codes, scale_N, offset = quantize_absmax(absmax)
    scale = dequantize_absmax(codes, scale_N, offset, dynamic_map().to(absmax.device))
    return {"scale": scale, "absmax_codes": codes, "absmax_scale": scale_N, "absmax_offset": offset}


def _values(codes: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the 16 codes stand for."""
    return torch.tensor(NF4_CODES, device=codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


def _blocks(flat: Tensor, size: int) -> Tensor:
    """A flat tensor in rows of `size`, the last filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _middles(values: Float[Tensor, " V"]) -> Float[Tensor, " V-1"]:
    return (values[1:] + values[:-1]) / 2


def _normal(weight_GS: Tensor, scale_G1: Tensor, short: bool) -> Tensor:
    """Weights over their scales, in bitsandbytes' operations: times the reciprocal, but a short last block by division."""
    scale_G1 = torch.where(scale_G1.abs() < TINY, 1.0, scale_G1)
    normal_GS = weight_GS * (1 / scale_G1)
    if short:
        normal_GS[-1] = weight_GS[-1] / scale_G1[-1]
    return normal_GS
