"""Sparsity masks: which weights are zero and stay zero. Pure functions of tensors.

A mask is made from scores: the weights of lowest score go. Of equal scores those first in storage order go. N:M, such as
2:4, means N weights of every M consecutive inputs are kept, as NVIDIA's sparse tensor cores read it (2104.08378, section 3).

Shapes: O output width, I input width, G groups along the input, M inputs of a group. A mask is true where a weight may live.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from recoup.errors import StructureError

MaskOI = Bool[Tensor, "O I"]
ScoreOI = Float[Tensor, "O I"]


def magnitude_mask(weight_OI: Float[Tensor, "O I"], sparsity: float) -> MaskOI:
    """True for all but the `round(sparsity · O · I)` weights of smallest magnitude, met exactly."""
    return lowest_removed(weight_OI.abs(), round(sparsity * weight_OI.numel()))


def lowest_removed(score_OI: ScoreOI, count: int) -> MaskOI:
    """True for all but the `count` lowest scores of the whole matrix."""
    return _lowest_of_each_removed(score_OI.flatten(), count).view(score_OI.shape)


def per_output_mask(score_OI: ScoreOI, sparsity: float) -> MaskOI:
    """True for all but the `round(sparsity · I)` lowest scores of each output row (Wanda, 2306.11695, section 3)."""
    return _lowest_of_each_removed(score_OI, round(sparsity * score_OI.shape[1]))


def n_of_m_mask(score_OI: ScoreOI, kept: int, group: int) -> MaskOI:
    """True for the `kept` highest scores of each `group` consecutive inputs.

    Raises:
        StructureError: the group does not divide the inputs.
    """
    check_groups(score_OI.shape[1], kept, group)
    return _lowest_of_each_removed(score_OI.unflatten(1, (-1, group)), group - kept).view(score_OI.shape)


def check_groups(inputs: int, kept: int, group: int) -> None:
    """Refuse a pattern that a layer's inputs cannot be divided by.

    Raises:
        StructureError: the group does not divide them.
    """
    if inputs % group:
        raise StructureError(f"a {kept}:{group} mask does not fit {inputs} inputs; use pattern: unstructured")


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """`2:4` → (2, 4), weights kept and weights in a group; null for `unstructured`."""
    if pattern == "unstructured":
        return None
    kept, group = pattern.split(":")
    return int(kept), int(group)


def pack(mask_OI: MaskOI) -> UInt8[Tensor, " bytes"]:
    """Eight weights a byte, storage order, most significant bit first."""
    return torch.from_numpy(np.packbits(mask_OI.cpu().numpy()))


def unpack(packed: UInt8[Tensor, " bytes"], shape_OI: tuple[int, int]) -> MaskOI:
    """Inverse of `pack`."""
    bits = np.unpackbits(packed.cpu().numpy(), count=shape_OI[0] * shape_OI[1])
    return torch.from_numpy(bits.astype(bool)).view(shape_OI)


def _lowest_of_each_removed(score: Tensor, count: int) -> Tensor:
    """True for all but the `count` lowest of the last axis."""
    lowest = torch.argsort(score, dim=-1, stable=True)[..., :count]
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, lowest, False)
