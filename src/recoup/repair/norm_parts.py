"""A model's norms: found, watched while a text passes through, and rescaled.

A norm is any module with a weight vector that multiplies what it puts out, by w or by 1 + w (as Gemma's does): which, is tried.

Shapes: B rollouts, T padded tokens, N real tokens, D width of a norm, O outputs of a linear layer.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.degrade.gather import removing
from recoup.models.layers import is_linear
from recoup.models.logits import output_head
from recoup.models.sample import Rollouts, position_ids

PROBE_TOKENS = 4
TOLERANCE = 0.05  # of the largest output: bfloat16 keeps 8 bits, a wrong guess is off by a third and more


@dataclass
class Seen:
    """What passed through a model, real tokens only, float32; by full name of the module."""

    inputs_ND: dict[str, Tensor] = field(default_factory=dict)  # of norms
    readers: dict[str, list[str]] = field(
        default_factory=dict
    )  # of norms: the linear layers that are given their output
    means_I: dict[str, Tensor] = field(default_factory=dict)  # of linear layers with a bias: their mean input


@dataclass(frozen=True)
class Norm:
    """A norm and how it multiplies."""

    module: nn.Module
    offset: int  # it multiplies by w + offset: 1 for Gemma's, 0 for most

    @torch.no_grad()
    def rescale(self, scale_D: Float[Tensor, " D"], shift_D: Float[Tensor, " D"]) -> None:
        """Multiply what it puts out by `scale_D`, then add `shift_D`, which is 0 where it has no bias; in place."""
        weight, bias = self.module.get_parameter("weight"), getattr(self.module, "bias", None)
        weight.copy_((weight + self.offset) * scale_D - self.offset)
        if bias is not None:
            bias.copy_(bias * scale_D + shift_D)


def norms(model: nn.Module) -> dict[str, Norm]:
    """Modules that scale what they put out by a weight vector, by full name."""
    kinds = {name: (module, offset_of(module)) for name, module in model.named_modules()}
    return {name: Norm(module, offset) for name, (module, offset) in kinds.items() if offset is not None}


@torch.no_grad()
def offset_of(module: nn.Module) -> int | None:
    """What a norm adds to its weight before it multiplies by it, 0 or 1; null: it is no norm."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or any(module.children()):
        return None
    generator = torch.Generator().manual_seed(0)
    probe_ND = torch.randn(PROBE_TOKENS, len(weight), generator=generator).to(weight)
    bias = getattr(module, "bias", None)
    stored = weight.clone()
    plain_ND = module(probe_ND) - (0 if bias is None else bias)
    found = None
    for offset in (0, 1):
        weight.copy_(2 * stored + offset)
        doubled_ND = module(probe_ND) - (0 if bias is None else bias)
        if (doubled_ND - 2 * plain_ND).abs().max() <= TOLERANCE * plain_ND.abs().max():
            found = offset
            break
    weight.copy_(stored)
    return found


@torch.no_grad()
def watch(model: PreTrainedModel, rollouts: Rollouts) -> Seen:
    """What norms and linear layers are given on `rollouts`, in one pass.

    Raises:
        SourceError: the model has no output head.
    """
    seen = Seen()
    last: list[Any] = [
        "",
        torch.empty(0),
    ]  # the norm that ran last, and what it put out, kept so that its memory is not reused

    def norm_ran(name: str, _norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[:-1] == rollouts.attention_BT.shape:  # norms of single heads have an axis more
            seen.inputs_ND[name] = inputs[0][rollouts.attention_BT]
            last[:] = [name, output]

    def linear_runs(name: str, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if linear.bias is not None:
            seen.means_I[name] = inputs[0][rollouts.attention_BT].float().mean(0)
        if _same(inputs[0], last[1]):
            seen.readers.setdefault(last[0], []).append(name)

    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    hooks = [norm.module.register_forward_hook(partial(norm_ran, name)) for name, norm in norms(model).items()]
    hooks += [linear.register_forward_pre_hook(partial(linear_runs, name)) for name, linear in linears.items()]
    with removing(hooks):
        hidden_BTD = run(model, rollouts)
    if _same(hidden_BTD, last[1]):
        head = output_head(model)
        seen.readers[last[0]] = [name for name, module in linears.items() if module is head]
    return seen


@torch.no_grad()
def run(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "B T D"]:
    """One ordinary pass without the head; returns what the head would be given."""
    output = model.base_model(
        rollouts.tokens_BT,
        attention_mask=rollouts.attention_BT.long(),
        position_ids=position_ids(rollouts.attention_BT),
        use_cache=False,
    )
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory: some architectures hand on a view."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
