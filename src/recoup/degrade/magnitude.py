"""Magnitude pruning: the smallest weights of each linear layer of the blocks become zero (Han et al., 1506.02626).

The share is met exactly in each layer by itself, or N of every M consecutive inputs are kept; no weight is updated to make up
for the loss. The maths is in `structure.masks`. A mask that the model already keeps stays: weights that were zero remain so.
A grid stays too, since zero is on nearly every grid, and masked weights are zero whatever the grid says.
"""

from dataclasses import replace

import torch
from torch import Tensor

from recoup.config import Magnitude
from recoup.degrade import Context
from recoup.degrade.walk import naming
from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel
from recoup.structure.masks import magnitude_mask, n_of_m, n_of_m_mask
from recoup.structure.spec import Constraint, Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: Magnitude, context: Context) -> Structure:
    """Prune the weights of `model` in place; returns `structure` with a mask on every linear layer of the blocks.

    Raises:
        StructureError: an N:M pattern does not fit a layer's inputs.
    """
    constraints = dict(structure.constraints)
    linears = block_linears(model.model)
    for done, (layer, module) in enumerate(linears.items(), start=1):
        name = f"{layer}.weight"
        before = constraints.get(name, Constraint(transposed=is_transposed(module)))
        weight = model.model.get_parameter(name)
        with naming(name):
            mask_OI = _mask(before.view_OI(weight).float(), config)
        constraints[name] = masked(before, mask_OI, config.pattern)
        weight.copy_(constraints[name].project(weight))
        context.progress("magnitude", done, len(linears))
    return replace(structure, constraints=constraints)


def masked(before: Constraint, mask_OI: Tensor, pattern: str) -> Constraint:
    """`before` with `mask_OI` as well: what was masked stays masked, and a pattern that held still holds."""
    if before.mask_OI is not None:
        mask_OI = mask_OI & before.mask_OI.to(mask_OI.device)
    return replace(before, mask_OI=mask_OI, pattern=pattern if n_of_m(pattern) else before.pattern)


def _mask(weight_OI: Tensor, config: Magnitude) -> Tensor:
    shape = n_of_m(config.pattern)
    return n_of_m_mask(weight_OI.abs(), *shape) if shape else magnitude_mask(weight_OI, config.sparsity)
