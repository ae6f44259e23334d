"""GPTQ: rounding to a grid, column by column, each error made up for by the columns that follow (2210.17323, Algorithm 1).

With H = Σ x xᵀ over calibration tokens, damped by 1% of its mean diagonal, and U the upper Cholesky factor of H⁻¹ (H⁻¹ =
UᵀU): column j is rounded to q_j, and w_k −= ((w_j − q_j) / U_jj) U_jk for the columns k after it. Updates beyond a block of
128 columns wait until the block is done (section 4, step 2).

Two things beside the paper, both as later tools do them. Columns are taken by falling diagonal of H, so that the inputs which
carry most are rounded while the most columns can make up for them; groups stay where they lie, their parameters fitted before
(llm-compressor's `actorder: weight`). And scales are searched (`degrade.scales`). On SmolLM2-135M at int3, groups of 64
asymmetric, on 8,020 tokens, they leave a token KL of 0.42 nats where columns in order and scales from the extremes leave 0.82
(0.62 with the order alone; rounded to nearest: 1.27).

Any of our grids will do whose groups lie along a row. An input that is always 0 gives nothing to make up and is rounded to
nearest, where the authors' code sets its weights to zero. Masked weights stay zero, and what they would have become is made up
for too (2301.00774, section 3.5).

With fewer tokens than inputs H is singular, and errors are passed on along directions that it knows nothing of: give several
times as many tokens as a layer has inputs.

Shapes: O output and I input width, S columns of a block.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.degrade.scales import searched
from recoup.errors import StructureError
from recoup.structure.grids import Grid, Parameters
from recoup.structure.grids.base import grouped

BLOCK_COLUMNS = 128  # updated at once, as in the authors' code
DAMPING = 0.01  # of the mean diagonal, as in the authors' code
DAMPING_TRIES = 4  # each ten times the last, should rounding have left H short of positive definite

Settle = Callable[[int, Tensor], Tensor]  # a column's number and weights (O) → what they become


def gptq(
    weight_OI: Float[Tensor, "O I"],
    hessian_II: Float[Tensor, "I I"],
    grid: Grid,
    mask_OI: Bool[Tensor, "O I"] | None = None,
) -> tuple[Float[Tensor, "O I"], Parameters]:
    """The weight on the grid, and the grid's parameters.

    Args:
        weight_OI: the weight.
        hessian_II: Σ x xᵀ over calibration tokens.
        grid: what it is put on.
        mask_OI: true where a weight may live; the others stay zero.

    Raises:
        StructureError: the grid's groups do not divide the inputs, or the weight or `hessian_II` holds NaN or infinity.
    """
    inputs = weight_OI.shape[1]
    grouped(weight_OI, grid.group_size)  # says what is wrong with a group size that does not divide the inputs
    mask_OI = torch.ones_like(weight_OI, dtype=torch.bool) if mask_OI is None else mask_OI
    weight_OI = torch.where(mask_OI, weight_OI, 0.0).float()
    parameters = searched(grid, weight_OI, hessian_II.diagonal())
    size = grid.group_size or inputs
    starts = range(0, inputs, size)
    settle = [_rounding(grid, grid.columns(parameters, start, start + size), start) for start in starts]
    order_I = hessian_II.diagonal().argsort(descending=True, stable=True)
    weight_IO, mask_IO = weight_OI.T[order_I].contiguous(), mask_OI.T[order_I]
    columns = order_I.tolist()

    def begin(_start: int, _stop: int) -> Settle:
        return lambda place, weight_O: settle[columns[place] // size](columns[place], weight_O).where(mask_IO[place], 0)

    sweep(weight_IO, inverse_factor(hessian_II[order_I][:, order_I]), BLOCK_COLUMNS, begin)
    return weight_IO[order_I.argsort()].T.contiguous(), parameters


def sweep(
    weight_IO: Float[Tensor, "I O"],
    factor_II: Float[Tensor, "I I"],
    size: int,
    begin: Callable[[int, int], Settle],
) -> None:
    """Settle the columns of a weight in order, in place; each passes its error on to those after it.

    Args:
        weight_IO: the weight, a column contiguous.
        factor_II: U, as `inverse_factor` gives it.
        size: columns of a group.
        begin: called when a group is reached, with its first column and the one after its last; says how to settle them.
    """
    inputs = len(weight_IO)
    block = size * max(1, BLOCK_COLUMNS // size)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        error_SO = torch.empty_like(weight_IO[start:stop])
        for first in range(start, stop, size):
            settle = begin(first, min(first + size, stop))
            for column in range(first, min(first + size, stop)):
                settled_O = settle(column, weight_IO[column])
                error_O = (weight_IO[column] - settled_O) / factor_II[column, column]
                weight_IO[column] = settled_O
                weight_IO[column + 1 : stop].addr_(factor_II[column, column + 1 : stop], error_O, alpha=-1)
                error_SO[column - start] = error_O
        weight_IO[stop:] -= factor_II[start:stop, stop:].T @ error_SO


def inverse_factor(hessian_II: Float[Tensor, "I I"]) -> Float[Tensor, "I I"]:
    """U, upper triangular, with UᵀU = (H + damping · mean(diag H) · 1)⁻¹; computed in float64, given in float32.

    An input that is always 0 keeps the damping alone. H of zeros counts as the identity.

    Raises:
        StructureError: H holds NaN or infinity.
    """
    hessian_II = hessian_II.double()
    mean = hessian_II.diagonal().mean()
    mean = torch.where(mean > 0, mean, 1.0)
    eye_II = torch.eye(len(hessian_II), dtype=torch.float64, device=hessian_II.device)
    for power in range(DAMPING_TRIES):
        lower_II, failed = torch.linalg.cholesky_ex(hessian_II + DAMPING * 10**power * mean * eye_II)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower_II), upper=True).float()
    raise StructureError("the calibration sums of its inputs hold NaN or infinity; try another calibration text")


def _rounding(grid: Grid, parameters: Parameters, start: int) -> Settle:
    """How a column of the group that starts at `start` is rounded with the group's `parameters`."""
    if grid.group_size is None:
        return lambda _column, weight_O: grid.project(weight_O[:, None], parameters)[:, 0]
    if any(field.name == "group_size" for field in fields(grid)):  # type: ignore[arg-type]  # every grid is a dataclass
        alone = replace(grid, group_size=1)  # type: ignore[type-var]
        return lambda _column, weight_O: alone.project(weight_O[:, None], parameters)[:, 0]
    return partial(_round_in_place, grid, parameters, start)


def _round_in_place(grid: Grid, parameters: Parameters, start: int, column: int, weight_O: Tensor) -> Tensor:
    """A column rounded where it stands in its group, as grids of a fixed group need: their scales may differ by place."""
    size = grid.group_size
    assert size, "a whole row rounds each column alone"
    group_OS = weight_O.new_zeros(len(weight_O), size)
    group_OS[:, column - start] = weight_O
    return grid.project(group_OS, parameters)[:, column - start]
