"""Wanda: pruning by weights and activations (2306.11695).

The score of a weight is |W_ij| · ‖x_j‖₂ (eq. 1), where ‖x_j‖₂ is the norm of input j over all calibration tokens; scores are
compared within each output row, or within each group of an N:M pattern, and the lowest go. No weight is updated.

Blocks are pruned one after another, and each is scored on what the pruned ones before it put out, as in the paper's own code
(locuslab/wanda, lib/prune.py). A mask and a grid that the model keeps stay, as in `magnitude`.

Shapes: O output and I input width.
"""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from recoup.config import Wanda
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.degrade.gather import Statistics
from recoup.degrade.magnitude import masked
from recoup.degrade.walk import walk_linears
from recoup.models.load import LanguageModel
from recoup.structure.masks import n_of_m, n_of_m_mask, per_output_mask
from recoup.structure.spec import Constraint, Structure


def apply(model: LanguageModel, structure: Structure, config: Wanda, context: Context) -> Structure:
    """Prune the weights of `model` in place; returns `structure` with a mask on every linear layer of the blocks.

    Raises:
        StructureError: an N:M pattern does not fit a layer's inputs, or the model cannot be walked block by block.
        DataError: the calibration file is missing or empty.
    """
    rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)

    def change(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        assert statistics.square_sum_I is not None, "asked for below"
        mask_OI = wanda(weight_OI, statistics.square_sum_I, config.pattern, config.sparsity)
        return weight_OI, masked(before, mask_OI, config.pattern)

    return walk_linears(model, structure, rollouts, {"square_sum"}, change, partial(context.progress, "wanda"))


def wanda(
    weight_OI: Float[Tensor, "O I"], square_sum_I: Float[Tensor, " I"], pattern: str, sparsity: float
) -> Bool[Tensor, "O I"]:
    """True where a weight stays.

    Args:
        weight_OI: the weight.
        square_sum_I: Σ x² over calibration tokens, per input.
        pattern: `unstructured`, or N:M.
        sparsity: share of each row that goes; an N:M pattern decides it by itself.

    Raises:
        StructureError: the pattern does not fit the inputs.
    """
    score_OI = weight_OI.float().abs() * square_sum_I.sqrt()
    shape = n_of_m(pattern)
    return n_of_m_mask(score_OI, *shape) if shape else per_output_mask(score_OI, sparsity)
