"""Width pruning of feed-forward parts: remove the neurons that matter least on calibration text, the same number per block.

The importance of neuron f is the mean over tokens of |h_f|, where h is what enters the down projection, times
‖W_down[:, f]‖₂: how far the neuron moves the residual stream on average. The product of activation and weight is Wanda's
score (2306.11695, eq. 1), taken per neuron instead of per weight; ranking neurons by mean absolute activations on a small
calibration set is Minitron's (2407.14679, section 2.2), without the weight. Nothing is updated to make up for the loss.

The config's width field is rewritten, so the checkpoint loads as an ordinary model. Masks are cut with their weights; a grid
is refused, since its groups would no longer fit.

Shapes: D width, F intermediate neurons, K kept neurons.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.config import FFNWidth
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.degrade.cut import (
    blueprint,
    conform,
    cut_layer,
    kept_count,
    most_important,
    noted,
    refuse_grids,
    weight_OI,
)
from recoup.degrade.walk import input_statistics
from recoup.models.layers import feed_forwards, intermediate_field, intermediate_size
from recoup.models.load import LanguageModel
from recoup.structure.spec import Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: FFNWidth, context: Context) -> Structure:
    """Remove neurons of `model` in place; returns `structure` with its masks cut and the change of width noted.

    Raises:
        StructureError: the model has no feed-forward part of a known form, keeps a grid, or would lose every neuron or none.
        DataError: the calibration file is missing or empty.
    """
    parts = feed_forwards(model.model)
    refuse_grids((layer for part in parts for layer in (*part.up, part.down)), structure)
    width, field = intermediate_size(model.model), intermediate_field(model.model)
    count = kept_count(width, config.fraction, "neurons of a block")
    plan = blueprint(model.model, {field: count})
    rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)
    progress = partial(context.progress, "ffn_width")
    seen = input_statistics(model, [part.down for part in parts], rollouts, {"absolute_sum"}, progress)
    constraints = dict(structure.constraints)
    for part in parts:
        absolute_sum_F = seen[part.down].absolute_sum_I
        assert absolute_sum_F is not None, "asked for above"
        mean_activation_F = absolute_sum_F / seen[part.down].num_tokens
        kept_K = most_important(importance(mean_activation_F, weight_OI(model.model, part.down)), count)
        for layer, axis_OI in [*((up, 0) for up in part.up), (part.down, 1)]:
            cut_layer(model.model, layer, kept_K, axis_OI, constraints)
    conform(model.model, plan, {field: count})
    context.note(
        f"{width - count} of {width} neurons removed per block, ranked on {seen[parts[0].down].num_tokens} tokens"
    )
    return Structure(constraints, noted(structure, {field: (width, count)}))


def importance(mean_activation_F: Float[Tensor, " F"], down_DF: Float[Tensor, "D F"]) -> Float[Tensor, " F"]:
    """Mean |h_f| times ‖W_down[:, f]‖₂, per neuron."""
    return mean_activation_F * down_DF.float().norm(dim=0)
