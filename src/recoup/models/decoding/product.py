"""A linear layer, or several of one input, as one product; on a CPU in bf16 with the weights packed beforehand.

oneDNN multiplies bf16 in blocks of its own layout and `torch.nn.functional.linear` lays the weight out anew at every call,
which for a handful of rows costs as much as the product. Inductor's operators take a weight that was packed once
(torch/_inductor/mkldnn_ir.py). The packed copy holds as many bytes as the weight; it is freed with the `Product`.

Shapes: O outputs (of all layers, one after the other), I inputs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether this machine multiplies weights of this kind from a packed copy."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Product:
    """What `nn.Linear` layers of one input put out, side by side."""

    def __init__(self, linears: Sequence[nn.Linear], *, packed: bool, num_rows: int) -> None:
        """Take the layers' present weights; later changes are seen only by an unpacked product.

        Args:
            linears: the layers.
            packed: hold a packed copy (see `can_pack`) instead of the layers' own weights.
            num_rows: rows of a usual call, for which the packed layout is chosen.
        """
        self._linears, self._packed = linears, None
        if packed:
            weight_OI = torch.cat([linear.weight for linear in linears])
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, num_rows)
            self._bias_O = _joined_bias(linears)

    def __call__(self, inputs: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """The product, biases added."""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias_O, "none", [], "")
        outputs = [nn.functional.linear(inputs, linear.weight, linear.bias) for linear in self._linears]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    """Biases one after the other, zeros for a layer that has none; None where no layer has one."""
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat([li.weight.new_zeros(len(li.weight)) if li.bias is None else li.bias for li in linears])
