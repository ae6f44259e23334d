"""Sparsity masks: which weights are zero and stay zero. Pure functions of tensors.

Shapes: O output width, I input width. A mask is true where a weight may live.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


def magnitude_mask(weight_OI: Float[Tensor, "O I"], sparsity: float) -> Bool[Tensor, "O I"]:
    """True for all but the `round(sparsity · O · I)` weights of smallest magnitude, met exactly; ties fall in storage order."""
    flat = weight_OI.abs().flatten()
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[torch.argsort(flat, stable=True)[: round(sparsity * len(flat))]] = False
    return mask.view_as(weight_OI)


def pack(mask_OI: Bool[Tensor, "O I"]) -> UInt8[Tensor, " bytes"]:
    """Eight weights a byte, storage order, most significant bit first."""
    return torch.from_numpy(np.packbits(mask_OI.cpu().numpy()))


def unpack(packed: UInt8[Tensor, " bytes"], shape_OI: tuple[int, int]) -> Bool[Tensor, "O I"]:
    """Inverse of `pack`."""
    bits = np.unpackbits(packed.cpu().numpy(), count=shape_OI[0] * shape_OI[1])
    return torch.from_numpy(bits.astype(bool)).view(shape_OI)
