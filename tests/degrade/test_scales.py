"""The search for scales: by hand, and as a property of every grid."""

import pytest
import torch

from recoup.degrade.scales import SHARES, searched
from recoup.structure.grids import Grid, IntegerGrid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.k_quants import GGUF_GRIDS
from tests.degrade.test_gptq import EVERY_GRID


def test_each_group_clips_where_that_pays_by_hand() -> None:
    # int2: codes −1, 0, 1. Group (1, 0.4, 0.4, 0.4), whole: 0.4 → 0, error 3 · 0.16 = 0.48; shrunk to 0.6: 0.4² + 3 · 0.2² =
    # 0.28, the least (0.65: 0.35² + 3 · 0.25² = 0.31). The same group where the first counts 10: 0.48 whole, 0.505 at 0.95
    weight = torch.tensor([[1.0, 0.4, 0.4, 0.4, 1.0, 0.4, 0.4, 0.4]])
    importance = torch.tensor([1.0, 1, 1, 1, 10, 1, 1, 1])
    found = searched(IntegerGrid(2, 4, symmetric=True), weight, importance)
    assert torch.equal(found["scale"], torch.tensor([[0.6, 1.0]]).half().float())


def test_groups_that_share_a_scale_are_judged_together() -> None:
    grid, weight = FP8Grid(per_tensor=True), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))

    def error(share: float) -> float:
        return float((grid.project(weight, grid.fit(share * weight)) - weight).square().sum())

    best = min((1.0, *SHARES), key=error)
    assert torch.equal(searched(grid, weight, torch.ones(32))["scale"], grid.fit(best * weight)["scale"])


@pytest.mark.parametrize("grid", EVERY_GRID, ids=lambda grid: grid.describe())
def test_no_grid_loses_by_it(grid: Grid) -> None:
    inputs = 512 if grid.group_size == 256 else 128
    generator = torch.Generator().manual_seed(1)
    weight, importance = 0.1 * torch.randn(6, inputs, generator=generator), torch.rand(inputs, generator=generator)
    found, fitted = searched(grid, weight, importance), grid.fit(weight)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in fitted.items()}

    def error(parameters: dict[str, torch.Tensor]) -> float:
        return float(((grid.project(weight, parameters) - weight).square() * importance).sum())

    if type(grid) in GGUF_GRIDS.values() and not grid.quick_fit:
        assert all(torch.equal(found[key], value) for key, value in fitted.items())  # they search by themselves
    else:
        assert error(found) <= error(fitted)
