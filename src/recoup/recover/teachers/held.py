"""How a frozen teacher's weights are held: as they are, in 8 bits, or in main memory.

- `int8`: every linear layer of the blocks as int8 codes with one scale per output channel (absmax / 127, round to nearest), the
  weight-only form of LLM.int8() (arXiv 2208.07339, section 2.1) and of torchao's `Int8WeightOnlyConfig`. Written here, for
  it is one product: codes up to 127 are exact in bf16, so y = (x codesᵀ) · scale rounds nothing but the weights themselves.
  Embeddings and head stay: the head decides every probability, and is mostly tied to the embeddings. Measured with
  SmolLM2-135M-Instruct on 352 tokens that its 4-bit student wrote: KL of the teacher from itself in bf16 0.0067 nats (of bf16
  from fp32: 0.0012), the student's loss 0.480 instead of 0.477, 163 MB instead of 269, a score no slower beyond the noise.
- `offload`: the blocks live in main memory and come to the accelerator one at a time (accelerate's hooks), which costs one
  transfer of the model per score. Without an accelerator there is nowhere to go from, and weights stay as they are.

Shapes: O output width, I input width.
"""

from typing import Literal

import torch
from accelerate import cpu_offload
from jaxtyping import Float, Int8
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.models.layers import block_linears, blocks, is_transposed

Hold = Literal["plain", "int8", "offload"]
LARGEST_CODE = 127  # symmetric: −128 is not used


def held(model: PreTrainedModel, hold: Hold) -> None:
    """Hold the model's weights so, in place.

    Raises:
        StructureError: the model has no blocks that can be found.
    """
    if hold == "int8":
        to_int8(model)
    elif hold == "offload" and model.device.type != "cpu":
        offload(model, model.device)


def offload(model: PreTrainedModel, device: torch.device) -> None:
    """Move every block's weights to main memory; its forward pass fetches them to `device` and lets go of them."""
    for block in blocks(model):
        cpu_offload(block, execution_device=device)


def to_int8(model: PreTrainedModel) -> None:
    """Replace the blocks' linear layers, one after another, so that never two copies of the model are alive."""
    for name in list(block_linears(model)):
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(name)
        model.get_submodule(parent).set_submodule(child, Int8Linear(module))


class Int8Linear(nn.Linear):
    """A linear layer (or GPT-2's transposed one) with weights in 8 bits; to whoever asks for its weight, an ordinary one."""

    codes_OI: Tensor
    scale_O: Tensor

    def __init__(self, linear: nn.Module) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        weight = linear.weight
        assert isinstance(weight, Tensor), "a linear layer has a weight"
        codes_OI, scale_O = int8_codes(weight.detach().T if is_transposed(linear) else weight.detach())
        self.out_features, self.in_features = codes_OI.shape
        self.register_buffer("codes_OI", codes_OI)
        self.register_buffer("scale_O", scale_O)
        self.register_parameter("bias", getattr(linear, "bias", None))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # what it computes with, laid out anew
        """Codes times scales, O × I."""
        return self.codes_OI.to(self.scale_O.dtype) * self.scale_O[:, None]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """Input · codesᵀ · scale + bias, in the type of the input."""
        product = nn.functional.linear(input, self.codes_OI.to(input.dtype)) * self.scale_O.to(input.dtype)
        return product if self.bias is None else product + self.bias


def int8_codes(weight_OI: Float[Tensor, "O I"]) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Codes in −127 … 127 and one scale per output channel, in the weight's type; a channel of zeros has scale 0.

    The scale is rounded to the weight's type before the codes are, so that codes fit the scale that is used.
    """
    scale_O = (weight_OI.abs().amax(-1) / LARGEST_CODE).float().to(weight_OI.dtype)
    units_OI = weight_OI.float() / scale_O.float()[:, None]
    codes_OI = units_OI.nan_to_num_(0.0).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    return codes_OI.to(torch.int8).contiguous(), scale_O
