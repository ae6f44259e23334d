"""Width pruning of feed-forward parts: remove the neurons that matter least on calibration text, the same number per block.

The importance of neuron f is the mean over tokens of |h_f|, where h is what enters the down projection, times
‖W_down[:, f]‖₂: how far the neuron moves the residual stream on average. The product of activation and weight is Wanda's
score (2306.11695, eq. 1), taken per neuron instead of per weight; ranking neurons by mean absolute activations on a small
calibration set is Minitron's (2407.14679, section 2.2), without the weight. Nothing is updated to make up for the loss.

The config's width field is rewritten, so the checkpoint loads as an ordinary model. Masks are cut with their weights; a grid
is refused, since its groups would no longer fit.

Shapes: B sequences, T padded tokens, D width, F intermediate neurons, K kept neurons, O output and I input width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recoup.config import FFNWidth
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.errors import StructureError
from recoup.models.layers import FeedForward, feed_forwards, intermediate_field, intermediate_size, is_transposed
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts, position_ids
from recoup.structure.spec import Constraint, Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: FFNWidth, context: Context) -> Structure:
    """Remove neurons of `model` in place; returns `structure` with its masks cut and the change of width noted.

    Raises:
        StructureError: the model has no feed-forward part of a known form, keeps a grid, or would lose every neuron.
        DataError: the calibration file is missing or empty.
    """
    parts = feed_forwards(model.model)
    _refuse_grids(parts, structure)
    width, field = intermediate_size(model.model), intermediate_field(model.model)
    count = kept_count(width, config.fraction)
    rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)
    activations = mean_activations(model, [part.down for part in parts], rollouts, context)
    constraints = dict(structure.constraints)
    for part in parts:
        importance_F = importance(activations[part.down], _weight_OI(model.model, part.down))
        _cut(model.model, part, most_important(importance_F, count), constraints)
    setattr(model.model.config, field, count)
    num_tokens = sum(int(batch.attention_BT.sum()) for batch in rollouts)
    context.note(f"{width - count} of {width} neurons removed per block, ranked on {num_tokens} tokens")
    first = structure.shapes.get(field, {}).get("before", width)
    return Structure(constraints, {**structure.shapes, field: {"before": first, "after": count}})


# --- the maths ---------------------------------------------------------------------------------------------------------


def kept_count(width: int, fraction: float) -> int:
    """K = F − round(F · fraction).

    Raises:
        StructureError: nothing would be left.
    """
    count = width - round(width * fraction)
    if not count:
        raise StructureError(f"fraction {fraction} removes all {width} neurons of a block; lower it")
    return count


def importance(mean_activation_F: Float[Tensor, " F"], down_DF: Float[Tensor, "D F"]) -> Float[Tensor, " F"]:
    """Mean |h_f| times ‖W_down[:, f]‖₂, per neuron."""
    return mean_activation_F * down_DF.float().norm(dim=0)


def most_important(importance_F: Float[Tensor, " F"], count: int) -> Int[Tensor, " K"]:
    """Indices of the `count` largest, ascending; of equal ones the first."""
    return torch.argsort(importance_F, descending=True, stable=True)[:count].sort().values


def absolute_sum(hidden_BTF: Float[Tensor, "B T F"], attention_BT: Bool[Tensor, "B T"]) -> Float[Tensor, " F"]:
    """Sum of |h_f| over real tokens, float32."""
    return hidden_BTF[attention_BT].float().abs().sum(0)


# --- the hooks ---------------------------------------------------------------------------------------------------------


def mean_activations(
    model: LanguageModel, layers: Sequence[str], rollouts: Sequence[Rollouts], context: Context
) -> dict[str, Float[Tensor, " F"]]:
    """Mean over the real tokens of `rollouts` of the absolute input of each of `layers`, by name."""
    sums: dict[str, Tensor] = {}
    for done, batch in enumerate(rollouts, start=1):
        with _adding_inputs(model.model, layers, batch.attention_BT, sums):
            model.model.base_model(
                batch.tokens_BT,
                attention_mask=batch.attention_BT.long(),
                position_ids=position_ids(batch.attention_BT),
                use_cache=False,
            )
        context.progress("ffn_width", done, len(rollouts))
    num_tokens = sum(int(batch.attention_BT.sum()) for batch in rollouts)
    return {layer: total_F / num_tokens for layer, total_F in sums.items()}


@contextmanager
def _adding_inputs(
    model: nn.Module, layers: Iterable[str], attention_BT: Tensor, sums: dict[str, Tensor]
) -> Iterator[None]:
    """While open, a forward pass adds to `sums` what enters each of `layers`."""

    def hook_of(layer: str) -> torch.utils.hooks.RemovableHandle:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums[layer] = sums.get(layer, 0) + absolute_sum(inputs[0], attention_BT)

        return model.get_submodule(layer).register_forward_pre_hook(add)

    hooks = [hook_of(layer) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# --- the cut -----------------------------------------------------------------------------------------------------------


def _cut(model: nn.Module, part: FeedForward, kept_K: Tensor, constraints: dict[str, Constraint]) -> None:
    """Keep `kept_K` of a block's neurons: rows of the layers that widen, columns of the one that narrows."""
    for layer, axis_OI in [*((up, 0) for up in part.up), (part.down, 1)]:
        _cut_layer(model.get_submodule(layer), kept_K, axis_OI)
        constraint = constraints.get(f"{layer}.weight")
        if constraint is not None and constraint.mask_OI is not None:
            mask_OI = constraint.mask_OI.index_select(axis_OI, kept_K.to(constraint.mask_OI.device))
            constraints[f"{layer}.weight"] = replace(constraint, mask_OI=mask_OI)


def _cut_layer(module: nn.Module, kept_K: Tensor, axis_OI: int) -> None:
    """Keep `kept_K` of a linear layer's outputs (axis 0) or inputs (axis 1)."""
    axis = 1 - axis_OI if is_transposed(module) else axis_OI
    module.weight = _selected(module.weight, axis, kept_K)  # type: ignore[arg-type]
    if axis_OI == 0 and module.bias is not None:
        module.bias = _selected(module.bias, 0, kept_K)  # type: ignore[arg-type]
    linear, conv1d = (("out_features", "nf"), ("in_features", "nx"))[axis_OI]
    setattr(module, conv1d if is_transposed(module) else linear, len(kept_K))


def _selected(parameter: nn.Parameter, axis: int, kept_K: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.index_select(axis, kept_K), requires_grad=parameter.requires_grad)


def _weight_OI(model: nn.Module, layer: str) -> Tensor:
    module = model.get_submodule(layer)
    return Constraint(transposed=is_transposed(module)).view_OI(model.get_parameter(f"{layer}.weight"))


def _refuse_grids(parts: Iterable[FeedForward], structure: Structure) -> None:
    for layer in (name for part in parts for name in (*part.up, part.down)):
        constraint = structure.constraints.get(f"{layer}.weight")
        if constraint is not None and constraint.grid is not None:
            raise StructureError(
                f"{layer}.weight lies on a grid ({constraint.grid.describe()}), which cannot be cut; prune before you quantize"
            )
