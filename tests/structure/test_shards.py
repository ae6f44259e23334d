"""A guard on row shards is the row shard of a guard, for every grid and mask that rows do not share."""

from typing import Any

import pytest
import torch
from torch import nn

from recoup.errors import StructureError
from recoup.structure.grids import GRIDS, Grid, IntegerGrid, NF4Grid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.guard import Guard
from recoup.structure.shards import LocalRows, check_rows, row_constraint, rows_held
from recoup.structure.spec import Constraint, Structure

REFUSED = {"nvfp4"}  # see below


SETTINGS: dict[str, dict[str, Any]] = {
    "int": {"bits": 3, "group_size": 16, "symmetric": False},
    "nf4": {"group_size": 32},
    "fp8": {"group_size": None},
}


@pytest.mark.parametrize("name", sorted(set(GRIDS) - REFUSED))
def test_rows_are_fitted_and_projected_alone(name: str) -> None:
    weight_OI = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    mask_OI = torch.rand(6, 256, generator=torch.Generator().manual_seed(1)) < 0.5
    grid = GRIDS[name](**SETTINGS.get(name, {}))
    whole = Constraint(grid, mask_OI=mask_OI).fitted(weight_OI)
    for rows in (slice(0, 4), slice(4, 6)):
        part = row_constraint(whole, rows, "w")
        assert torch.equal(part.project(weight_OI[rows]), whole.project(weight_OI)[rows])
        again = part.fitted(weight_OI[rows])
        assert all(torch.equal(again.parameters[key], part.parameters[key]) for key in part.parameters)


@pytest.mark.parametrize(
    "grid",
    [
        GRIDS["nvfp4"](),  # one scale for the whole weight besides those of its groups
        FP8Grid(per_tensor=True),
        NF4Grid(64, double_quantized=True),  # the scales of 256 blocks share a scale, across rows
        NF4Grid(48),  # blocks that run on from one row to the next
    ],
    ids=lambda grid: grid.describe(),
)
def test_what_rows_share_is_refused(grid: Grid) -> None:
    constraint = Constraint(grid).fitted(torch.randn(6, 256))
    with pytest.raises(StructureError, match=r"w: .* belongs to no row"):
        row_constraint(constraint, slice(0, 2), "w")


@pytest.mark.parametrize(
    ("count", "number", "held"),
    [
        (6, 2, [(0, 3), (3, 6)]),
        (5, 2, [(0, 3), (3, 5)]),
        (9, 4, [(0, 3), (3, 6), (6, 9), (9, 9)]),  # 3 rows each, as torch.chunk cuts, and none is left for the last
        (2, 3, [(0, 1), (1, 2), (2, 2)]),
    ],
)
def test_rows_that_a_process_holds(count: int, number: int, held: list[tuple[int, int]]) -> None:
    assert [slice(*rows) for rows in held] == [rows_held(count, rank, number) for rank in range(number)]


def test_a_grid_needs_a_row_in_every_process() -> None:
    check_rows(8, 4, "w")
    with pytest.raises(StructureError, match="w: 9 rows leave some of 4 processes none; launch fewer"):
        check_rows(9, 4, "w")


def test_transposed_weights_are_refused() -> None:
    turned = Constraint(IntegerGrid(bits=3, group_size=16, symmetric=True), transposed=True)
    with pytest.raises(StructureError, match="w: stored input × output"):
        row_constraint(turned.fitted(torch.randn(64, 4)), slice(0, 2), "w")


def test_a_guard_on_local_rows_moves_the_model() -> None:
    linear = nn.Linear(16, 4, bias=False)
    model = nn.Sequential(linear)
    constraint = Constraint(IntegerGrid(bits=3, group_size=16, symmetric=True)).fitted(linear.weight.detach())
    guard = Guard(LocalRows(model), Structure({"0.weight": constraint}))
    latent = next(guard.parameters())
    with torch.no_grad():
        latent.add_(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)))
    guard.project()
    expected = constraint.fitted(latent.detach()).project(latent.detach())
    assert torch.equal(linear.weight.detach(), expected)
