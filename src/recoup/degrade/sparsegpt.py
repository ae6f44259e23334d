"""SparseGPT: pruning that updates the weights it leaves, to make up for those it removes (2301.00774).

With H = Σ x xᵀ over calibration tokens, damped by 1% of its mean diagonal, and U the upper Cholesky factor of H⁻¹ (H⁻¹ =
UᵀU), removing weight j of a row costs w² / U_jj² and is best made up for by w_k −= (w_j / U_jj) U_jk for the columns k after j
(Algorithm 1). Columns are taken in order. Which weights go is decided per 128 columns, over all rows, or per group of an N:M
pattern, when the walk reaches them, so with the updates so far. The number of zeros is met exactly over the whole matrix.

A mask that the model keeps stays: the new one lies within it. A weight on a grid is refused, since updates leave the grid.

Shapes: O output and I input width, S columns decided on together.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.config import SparseGPT
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.degrade.cut import refuse_grids
from recoup.degrade.gather import Statistics
from recoup.degrade.gptq import BLOCK_COLUMNS, Settle, inverse_factor, sweep
from recoup.degrade.magnitude import masked
from recoup.degrade.walk import walk_linears
from recoup.models.layers import block_linears
from recoup.models.load import LanguageModel
from recoup.structure.masks import check_groups, lowest_removed, n_of_m, n_of_m_mask
from recoup.structure.spec import Constraint, Structure

LEFT = "SparseGPT's updates would leave; prune before you quantize, or use wanda"


def apply(model: LanguageModel, structure: Structure, config: SparseGPT, context: Context) -> Structure:
    """Prune and update the weights of `model` in place; returns `structure` with a mask on every linear layer of the blocks.

    Raises:
        StructureError: a weight lies on a grid, an N:M pattern does not fit a layer's inputs, or the model cannot be walked
            block by block.
        DataError: the calibration file is missing or empty.
    """
    refuse_grids(block_linears(model.model), structure, LEFT)
    rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)

    def change(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        assert statistics.second_moment_II is not None, "asked for below"
        updated_OI, mask_OI = sparsegpt(
            weight_OI, statistics.second_moment_II, config.pattern, config.sparsity, before.mask_OI
        )
        return updated_OI, masked(before, mask_OI, config.pattern)

    return walk_linears(model, structure, rollouts, {"second_moment"}, change, partial(context.progress, "sparsegpt"))


def sparsegpt(
    weight_OI: Float[Tensor, "O I"],
    hessian_II: Float[Tensor, "I I"],
    pattern: str,
    sparsity: float,
    mask_OI: Bool[Tensor, "O I"] | None = None,
) -> tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]:
    """The updated weight, zero where removed, and the mask, true where a weight stays.

    Args:
        weight_OI: the weight.
        hessian_II: Σ x xᵀ over calibration tokens.
        pattern: `unstructured`, or N:M.
        sparsity: share of the matrix that goes; an N:M pattern decides it by itself.
        mask_OI: what is zero already and stays so.

    Raises:
        StructureError: the pattern does not fit the inputs.
    """
    shape = n_of_m(pattern)
    if shape:
        check_groups(weight_OI.shape[1], *shape)
    factor_II = inverse_factor(hessian_II)
    mask_OI = torch.ones_like(weight_OI, dtype=torch.bool) if mask_OI is None else mask_OI
    weight_IO = torch.where(mask_OI, weight_OI, 0.0).float().T.contiguous()
    mask_IO = mask_OI.T.clone(memory_format=torch.contiguous_format)
    outputs = len(weight_OI)
    removed = 0

    def begin(start: int, stop: int) -> Settle:
        nonlocal removed
        cost_SO = weight_IO[start:stop].abs() / factor_II.diagonal()[start:stop, None]
        cost_OS = cost_SO.where(mask_IO[start:stop], -1).T  # what is zero already goes first
        target = round(sparsity * outputs * stop)
        kept_OS = n_of_m_mask(cost_OS, *shape) if shape else lowest_removed(cost_OS, target - removed)
        removed = target
        mask_IO[start:stop] &= kept_OS.T
        return lambda column, weight_O: weight_O.where(mask_IO[column], 0)

    sweep(weight_IO, factor_II, shape[1] if shape else BLOCK_COLUMNS, begin)
    return weight_IO.T.contiguous(), mask_IO.T.contiguous()
