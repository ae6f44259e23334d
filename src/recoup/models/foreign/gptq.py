"""Checkpoints of GPTQ (arXiv 2210.17323) as AutoGPTQ and GPTQModel lay them out: 2, 3, 4 and 8 bits.

Of a module: `qweight` (I·bits/32, O), codes packed along the inputs; `qzeros` (G, O·bits/32), zero points packed along the
outputs; `scales` (G, O); `g_idx` (I), the group of each input. w = scale (code − zero). Format "gptq" stores zero − 1, which
is undone by adding 1 and not wrapping round, as their PyTorch kernels do, so a zero point may be 2^bits; "gptq_v2" stores zero.

Source: AutoGPTQ `nn_modules/qlinear`; GPTQModel `nn_modules/qlinear/torch.py`. With activation order (`g_idx` is not
0, 0, …, 1, 1, …) groups are no runs of inputs: the weight is read exactly and stays free.

Shapes: O output width, I input width, G groups along the input.
"""

import torch

from recoup.models.foreign.bits import WORD_BITS, unpack
from recoup.models.foreign.checkpoint import Checkpoint, Matrix, Reader, in_order, integer_matrix, permuted_matrix

BITS = (2, 3, 4, 8)
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


def read(checkpoint: Checkpoint, module: str) -> Matrix:
    """The matrix of a module.

    Raises:
        SourceError: the packing is another one, or a tensor is missing.
    """
    config = checkpoint.quantization
    bits, packing = config.get("bits"), config.get("checkpoint_format", "gptq")
    if bits not in BITS or packing not in ZERO_OFFSETS:
        raise checkpoint.refuse(
            f"GPTQ of {bits} bits in format {packing!r}", "recoup reads 2, 3, 4 and 8 bits, formats gptq and gptq_v2"
        )
    qweight, scale_GO = checkpoint.get(f"{module}.qweight"), checkpoint.get(f"{module}.scales")
    codes_OI = unpack(qweight.T, bits, qweight.shape[0] * WORD_BITS // bits)
    zero_GO = unpack(checkpoint.get(f"{module}.qzeros"), bits, scale_GO.shape[1]).float() + ZERO_OFFSETS[packing]
    groups, inputs = len(scale_GO), codes_OI.shape[1]
    name = f"{module}.g_idx"
    group_I = checkpoint.get(name) if checkpoint.has(name) else torch.arange(inputs) // (inputs // groups)
    if in_order(group_I, groups):
        return integer_matrix(codes_OI, scale_GO.T, zero_GO.T, bits)
    return permuted_matrix(codes_OI, scale_GO.T, zero_GO.T, group_I)


READER = Reader(label="GPTQ", markers=(".qweight",), parts=(".qweight", ".qzeros", ".scales", ".g_idx"), read=read)
