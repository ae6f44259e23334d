"""The products of the fused divergence and their precision.

| hidden states and head | logits | slopes (d loss / d logits) and their two products |
|---|---|---|
| float64, float32 | in that type | in that type |
| bfloat16 both | exact products, float32 sums | bfloat16 slopes, float32 sums, rounded once |
| float16, mixed | float32 | float32 (float16 slopes would underflow) |

bfloat16 logits would put the gradient 6% off. No CPU kernel of torch multiplies bfloat16 into float32, but float32 copies of
bfloat16 values multiplied in `torch.set_float32_matmul_precision("medium")` are rounded to bfloat16 without loss and summed in
float32; where the processor has no bfloat16 unit they are multiplied in float32, which is as exact. On a GPU the same
setting means TF32, whose 11 bits hold bfloat16's 8. The copies are made a tile of the head at a time.

Shapes: C tokens of a chunk, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.divergence.chunks import tiles
from recoup.divergence.formulas import FLOOR, wide
from recoup.divergence.head import Head


def slope_type(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    """The type slopes are kept in: bfloat16 where hidden states and head both are, else float32 or float64."""
    common = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    return common if common == torch.bfloat16 else wide(common)


def project(hidden_CD: Float[Tensor, "C D"], head: Head, out_CV: Float[Tensor, "C V"]) -> None:
    """Write softcap(scale · (hidden · Wᵀ + bias)) into a float32 or float64 buffer; no graph."""
    with _exact_products(slope_type(hidden_CD, head.weight_VD)):
        _multiply(hidden_CD.to(out_CV.dtype), head.weight_VD, out_CV)
    if head.bias_V is not None:
        out_CV += head.bias_V.to(out_CV.dtype).clamp_min(FLOOR)  # a padded token's bias may be −inf
    if head.scale != 1.0:
        out_CV *= head.scale
    if head.softcap is not None:
        out_CV.div_(head.softcap).tanh_().mul_(head.softcap)


def through_head(slope_CV: Float[Tensor, "C V"], weight_VD: Float[Tensor, "V D"]) -> Float[Tensor, "C D"]:
    """Slopes times W, in the slopes' type, summed in float32 or float64."""
    if weight_VD.dtype == slope_CV.dtype:
        return slope_CV @ weight_VD
    sum_CD = slope_CV.new_zeros(slope_CV.shape[0], weight_VD.shape[1])
    for tile in tiles(weight_VD):
        sum_CD.addmm_(slope_CV[:, tile], weight_VD[tile].to(slope_CV.dtype))
    return sum_CD


def _multiply(hidden_CD: Tensor, weight_VD: Tensor, out_CV: Tensor) -> None:
    if weight_VD.dtype == out_CV.dtype:
        torch.mm(hidden_CD, weight_VD.T, out=out_CV)
        return
    copy_TD: Tensor | None = None
    for tile in tiles(weight_VD):
        if copy_TD is None:
            copy_TD = torch.empty_like(weight_VD[tile], dtype=out_CV.dtype)
        wide_TD = copy_TD[: tile.stop - tile.start].copy_(weight_VD[tile])
        torch.mm(hidden_CD, wide_TD.T, out=out_CV[:, tile])


@contextmanager
def _exact_products(values: torch.dtype) -> Iterator[None]:
    """Let float32 products of bfloat16 values be made by the bfloat16 (GPU: TF32) unit; the global is put back."""
    before = torch.get_float32_matmul_precision()
    if values == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
