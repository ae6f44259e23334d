"""Constraints for every linear layer of a model's blocks."""

from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel
from recoup.structure.grids.base import Grid
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure


def constrain(model: LanguageModel, grid: Grid | None, sparsity: float | None, *, refit: bool = True) -> Structure:
    constraints = {}
    for name, module in block_linears(model.model).items():
        free = Constraint(grid, transposed=is_transposed(module))
        weight_OI = free.view_OI(model.model.get_parameter(f"{name}.weight").data)
        mask = None if sparsity is None else magnitude_mask(weight_OI, sparsity)
        constraints[f"{name}.weight"] = Constraint(grid, {}, mask, is_transposed(module), refit)
    return Structure(constraints)
