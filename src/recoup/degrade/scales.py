"""Scales for calibrated rounding: a few large weights of a group need not decide how coarse its codes are.

A grid's own fit reaches the largest weight of each group. Here it is fitted to the weight shrunk by a few shares as well, so
that the largest are clipped, and each group keeps the fit with the least Σ_i importance_i (q_i − w_i)² (as the search for
clipping in AWQ's and GPTQ's public code, there without importance).

Shapes: O output and I input width, G groups along the input, S columns of a group.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.structure.grids import Grid, Parameters
from recoup.structure.grids.base import grouped

SHARES = tuple(share / 20 for share in range(19, 11, -1))  # of the weight, beside the whole: 0.95 to 0.6


def searched(grid: Grid, weight_OI: Float[Tensor, "O I"], importance_I: Float[Tensor, " I"]) -> Parameters:
    """The parameters with the least weighted error: each group's own, or the whole weight's where groups share some.

    A grid that searches by itself (K-quants) keeps what it finds.

    Args:
        grid: what the weight is put on; its groups divide the inputs.
        weight_OI: float32.
        importance_I: how much an error at each input counts, such as Σ x² over calibration tokens.

    Raises:
        StructureError: the weight holds NaN or infinity.
    """
    best = grid.fit(weight_OI)
    if not grid.quick_fit:
        return best
    alone = all(value.ndim > 1 for value in best.values())
    least = _error(grid, best, weight_OI, importance_I, alone)
    for share in SHARES:
        found = grid.fit(share * weight_OI)
        error = _error(grid, found, weight_OI, importance_I, alone)
        better = error < least
        least = torch.where(better, error, least)
        best = {key: torch.where(better, value, best[key]) for key, value in found.items()}
    return best


def _error(grid: Grid, parameters: Parameters, weight_OI: Tensor, importance_I: Tensor, alone: bool) -> Tensor:
    """Of each group (O, G), or of the whole weight."""
    error_OI = (grid.project(weight_OI, parameters) - weight_OI).square() * importance_I
    return grouped(error_OI, grid.group_size).sum(-1) if alone else error_OI.sum()
