"""Checkpoints of bitsandbytes: NF4 with and without double quantization (QLoRA, arXiv 2305.14314), read without the library.

Nothing of bitsandbytes is imported: the bytes are taken apart here and the model is an ordinary float32 one. So a defect of
bitsandbytes 0.50 cannot reach a recovery: on a CPU with AVX512-BF16, one forward pass in evaluation mode without gradients (any
rollout) repacks its weights, and every later gradient to a LoRA is zero without a word.

Layout of a weight `W` (bitsandbytes `functional.QuantState.as_dict(packed=True)`): `W`, two codes a byte; `W.absmax`, of each
block, or with double quantization its 8-bit codes, with `W.nested_absmax` and `W.nested_quant_map`; `W.quant_map`, the 16 values;
`W.quant_state.bitsandbytes__nf4`, JSON as bytes (shape, block sizes, the mean taken off absmax). Values agree with
`dequantize_4bit` in float32 bit for bit.
"""

import json

import torch
from torch import Tensor

from recoup.models.foreign.checkpoint import Checkpoint, Matrix, Reader
from recoup.structure.grids.nf4 import ABSMAX_BLOCK, NF4_CODES, NF4Grid, dequantize_absmax, unpack_nf4

NF4_STATE, FP4_STATE = ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"
INT8_STATE = ".SCB"  # row scales of LLM.int8()


def read(checkpoint: Checkpoint, module: str) -> Matrix:
    """The NF4 matrix of a module.

    Raises:
        SourceError: it is FP4 or int8, its 16 values are not NF4's, or a tensor is missing.
    """
    if not checkpoint.has(module + NF4_STATE):
        kind = "FP4" if checkpoint.has(module + FP4_STATE) else "8-bit"
        raise checkpoint.refuse(
            f"bitsandbytes {kind} weights, of which recoup has no grid",
            'use NF4 (load_in_4bit=True, bnb_4bit_quant_type="nf4"), or dequantize() and save',
        )
    weight = f"{module}.weight"
    state = json.loads(checkpoint.get(module + NF4_STATE).numpy().tobytes())
    values = checkpoint.get(f"{weight}.quant_map")
    if not torch.equal(values, torch.tensor(NF4_CODES)):
        raise checkpoint.refuse(
            f"{weight} has other values than NF4's", "quantize it again with bitsandbytes 0.40 or later"
        )
    outputs, inputs = state["shape"]
    size = int(state["blocksize"])
    codes = unpack_nf4(checkpoint.get(weight).contiguous().view(torch.uint8), outputs * inputs)
    scale, stored = _scale(checkpoint, weight, state)
    weight_OI = (values[codes.int()] * scale.repeat_interleave(size)[: len(codes)]).view(outputs, inputs)
    layout = (outputs, -1) if inputs % size == 0 else (-1,)
    parameters = {**stored, "scale": scale.where(scale != 0, 1.0).view(layout)}  # 0: a block of zeros; 1 divides
    if stored:
        parameters["absmax_codes"] = stored["absmax_codes"].view(layout)
    return Matrix(weight_OI.add_(0.0), NF4Grid(size, double_quantized=bool(stored)), parameters)


def _scale(checkpoint: Checkpoint, weight: str, state: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """The absmax of each block, and with double quantization what is stored of it."""
    absmax = checkpoint.get(f"{weight}.absmax")
    if "nested_offset" not in state:
        return absmax.float(), {}
    if state["nested_blocksize"] != ABSMAX_BLOCK:
        raise checkpoint.refuse(
            f"{weight} has absmax blocks of {state['nested_blocksize']}", f"recoup reads {ABSMAX_BLOCK}"
        )
    stored = {
        "absmax_codes": absmax,
        "absmax_scale": checkpoint.get(f"{weight}.nested_absmax").float(),
        "absmax_offset": torch.tensor(float(state["nested_offset"])),
    }
    values = checkpoint.get(f"{weight}.nested_quant_map").float()
    return dequantize_absmax(absmax, stored["absmax_scale"], stored["absmax_offset"], values), stored


READER = Reader(
    label="bitsandbytes",
    markers=(NF4_STATE, FP4_STATE, INT8_STATE),
    parts=(
        ".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
        NF4_STATE, FP4_STATE, INT8_STATE, ".weight_format",
    ),
    read=read,
)  # fmt: skip
