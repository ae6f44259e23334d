"""Round-to-nearest quantization: the damage that a grid does, with nothing done against it.

Every linear layer inside the blocks is rounded to the nearest point of its grid; embeddings, norms and the head stay as they
are, as in NF4 quantization of arXiv 2305.14314. The maths is in `structure.grids`. A mask that the model already keeps
stays, so its zeros remain zeros; a grid that it already keeps is replaced.
"""

from dataclasses import replace

import torch
from torch import Tensor

from recoup.config import Quantize
from recoup.degrade import Context
from recoup.errors import StructureError
from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel
from recoup.structure.grids import Grid, IntegerGrid, NF4Grid
from recoup.structure.spec import Constraint, Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: Quantize, context: Context) -> Structure:
    """Round the weights of `model` in place; returns `structure` with the grid on every linear layer of the blocks.

    Raises:
        StructureError: the group size does not divide a layer's inputs, or a weight holds NaN or infinity.
    """
    grid = grid_of(config)
    constraints = dict(structure.constraints)
    linears = block_linears(model.model)
    for done, (layer, module) in enumerate(linears.items(), start=1):
        name = f"{layer}.weight"
        before = constraints.get(name, Constraint(transposed=is_transposed(module)))
        constraints[name] = _round(
            name, model.model.get_parameter(name), replace(before, grid=grid, refit=grid.quick_fit)
        )
        context.progress("quantize", done, len(linears))
    return replace(structure, constraints=constraints)


def grid_of(config: Quantize) -> Grid:
    """The grid that a config names."""
    if config.format == "nf4":
        return NF4Grid(config.group_size)
    return IntegerGrid(config.bits, config.group_size, config.symmetric)


def _round(name: str, weight: Tensor, constraint: Constraint) -> Constraint:
    """Lay the nearest values on the grid into `weight`; returns the constraint with the scales fitted."""
    try:
        fitted = constraint.fitted(weight)
    except StructureError as error:
        raise StructureError(f"{name}: {error}") from None
    weight.copy_(fitted.project(weight))
    return fitted
