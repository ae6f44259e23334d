"""Unstructured magnitude pruning: the smallest weights of each linear layer of the blocks become zero (Han et al., 1506.02626).

The share is met exactly in each layer by itself; no weight is updated to make up for the loss. The maths is in
`structure.masks`. A mask that the model already keeps stays: weights that were zero remain so. A grid stays too, since zero
is on every grid.
"""

from dataclasses import replace

import torch
from torch import Tensor

from recoup.config import Magnitude
from recoup.degrade import Context
from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: Magnitude, context: Context) -> Structure:
    """Prune the weights of `model` in place; returns `structure` with a mask on every linear layer of the blocks."""
    constraints = dict(structure.constraints)
    linears = block_linears(model.model)
    for done, (layer, module) in enumerate(linears.items(), start=1):
        name = f"{layer}.weight"
        before = constraints.get(name, Constraint(transposed=is_transposed(module)))
        weight = model.model.get_parameter(name)
        constraints[name] = _masked(before, weight, config.sparsity)
        weight.copy_(constraints[name].project(weight))
        context.progress("magnitude", done, len(linears))
    return replace(structure, constraints=constraints)


def _masked(before: Constraint, weight: Tensor, sparsity: float) -> Constraint:
    """`before` with the smallest weights masked as well."""
    mask_OI = magnitude_mask(before.view_OI(weight), sparsity)
    return replace(before, mask_OI=mask_OI if before.mask_OI is None else mask_OI & before.mask_OI.to(mask_OI.device))
