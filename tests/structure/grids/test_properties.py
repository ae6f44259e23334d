"""What every grid must do, whatever its format.

Every class in `GRIDS` is tested: those listed in `EXAMPLES` with the settings given there, any other with its defaults.
A new format needs no line here; one in `BOUNDS` and `EQUIVARIANT` says how close it comes and how it scales.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids import GRIDS
from recoup.structure.grids.base import Grid, Parameters
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.integer import IntegerGrid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nf4 import NF4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid

ROWS, INPUTS = 3, 512  # inputs: two of the largest groups any format has
EXAMPLES: dict[type[Grid], tuple[Grid, ...]] = {
    IntegerGrid: (
        IntegerGrid(2, 16, symmetric=True),
        IntegerGrid(3, 64, symmetric=False),
        IntegerGrid(8, None, symmetric=True),
        IntegerGrid(4, None, symmetric=False),
        IntegerGrid(4, 32, symmetric=True, full_range=True),
    ),
    NF4Grid: (NF4Grid(), NF4Grid(32), NF4Grid(64, double_quantized=True), NF4Grid(16, double_quantized=True)),
    FP8Grid: (FP8Grid(), FP8Grid(128), FP8Grid(per_tensor=True)),
    MXFP4Grid: (MXFP4Grid(),),
    NVFP4Grid: (NVFP4Grid(),),
}
OTHERS = tuple(kind() for kind in GRIDS.values() if kind not in EXAMPLES)
ALL = tuple(grid for grids in EXAMPLES.values() for grid in grids) + OTHERS
EVERY = pytest.mark.parametrize("grid", ALL, ids=repr)
SEEDS = st.integers(0, 999)


def random(seed: int, size: float = 1.0, spread: float = 1.0) -> Tensor:
    """Normal weights; groups of 16 differ in size by factors of about e^spread, and one row in three has zero groups."""
    generator = torch.Generator().manual_seed(seed)
    weight_OGS = torch.randn(ROWS, INPUTS // 16, 16, generator=generator) * size
    weight_OGS *= (torch.randn(ROWS, INPUTS // 16, 1, generator=generator) * spread).exp()
    weight_OGS[0, : INPUTS // 32] = 0
    return weight_OGS.view(ROWS, INPUTS)


def per_weight(grid: Grid, values: Tensor) -> Tensor:
    """Values per group, repeated for each weight."""
    return values.repeat_interleave(INPUTS // values.shape[1], 1) if values.ndim else values


@EVERY
@given(seed=SEEDS, size=st.sampled_from([1e-38, 1e-9, 1e-3, 1.0, 3e4, 1e30]), spread=st.sampled_from([0.0, 1.0, 5.0]))
@settings(deadline=None, max_examples=10)
def test_projecting_twice_changes_no_bit(grid: Grid, seed: int, size: float, spread: float) -> None:
    weight = random(seed, size, spread).clamp(-1e37, 1e37)
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert once.dtype == torch.float32
    assert once.shape == weight.shape
    assert torch.isfinite(once).all()
    assert not torch.signbit(once[once == 0]).any()  # −0 becomes 0
    assert torch.equal(grid.project(once, parameters), once)
    assert torch.equal(grid.project(once.T.contiguous().T, parameters), once)  # however it is laid out


@EVERY
@given(seed=SEEDS)
@settings(deadline=None, max_examples=5)
def test_stale_parameters_still_give_the_grid(grid: Grid, seed: int) -> None:
    parameters = grid.fit(random(seed))
    once = grid.project(random(seed + 1) * 3, parameters)  # moved since, and partly out of range
    assert torch.isfinite(once).all()
    assert torch.equal(grid.project(once, parameters), once)


@EVERY
def test_zeros_stay_zeros(grid: Grid) -> None:
    zeros = torch.zeros(ROWS, INPUTS)
    assert torch.equal(grid.project(zeros, grid.fit(zeros)), zeros)
    weight = random(0)
    weight[:, ::7] = 0
    if not asymmetric_about_zero(grid):
        assert (grid.project(weight, grid.fit(weight))[:, ::7] == 0).all()


def asymmetric_about_zero(grid: Grid) -> bool:
    """Whether a lone zero may move: formats with a minimum that is no multiple of their scale."""
    return "min" in grid.fit(random(0))


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(grid: Grid, bad: float) -> None:
    weight = random(0)
    weight[1, 5] = bad
    with pytest.raises(StructureError, match="NaN or infinity"):
        grid.fit(weight)


@EVERY
@given(seed=SEEDS, first=st.integers(0, 3), groups=st.integers(1, 4))
@settings(deadline=None, max_examples=5)
def test_columns_project_as_the_whole_does(grid: Grid, seed: int, first: int, groups: int) -> None:
    size = grid.group_size or 64  # without groups any columns will do
    start = min(first * size, INPUTS - size)
    stop = min(start + groups * size, INPUTS)
    weight = random(seed)
    parameters = grid.fit(weight)
    part = grid.project(weight[:, start:stop], grid.columns(parameters, start, stop))
    assert torch.equal(part, grid.project(weight, parameters)[:, start:stop])


@EVERY
def test_parameters_survive_a_file(grid: Grid, tmp_path: Path) -> None:
    weight = random(1)
    parameters = grid.fit(weight)
    save_file(parameters, tmp_path / "parameters.safetensors")
    again = load_file(tmp_path / "parameters.safetensors")
    assert again.keys() == parameters.keys()
    assert all(torch.equal(again[key], value) and again[key].dtype == value.dtype for key, value in parameters.items())
    assert torch.equal(grid.project(weight, again), grid.project(weight, parameters))
    assert type(grid)(**grid.settings()) == grid


@EVERY
def test_parameters_are_laid_out_by_group(grid: Grid) -> None:
    parameters = grid.fit(random(2))
    assert not any(":" in key for key in parameters)
    assert all(value.is_contiguous() for value in parameters.values())
    groups = INPUTS // grid.group_size if grid.group_size else 1
    assert all(value.shape[:2] == (ROWS, groups) for value in parameters.values() if value.ndim > 1)


def integer_bound(grid: Grid, weight: Tensor, parameters: Parameters) -> Tensor:
    """Half a step, and what float16 takes from a scale (2^-11 of it) times the largest code."""
    assert isinstance(grid, IntegerGrid)
    return per_weight(grid, parameters["scale"]) * (0.5 + (2**grid.bits - 1) * 2**-11 + 1e-4)


def nf4_bound(grid: Grid, weight: Tensor, parameters: Parameters) -> Tensor:
    """Half the widest gap, 1 − 0.6962, of what codes are picked with, and how far the scale is from that."""
    scale, absmax = parameters["scale"], parameters.get("absmax", parameters["scale"])
    return per_weight(grid, absmax * (0.1519035 + 1e-6) + (scale - absmax).abs())


def fp8_bound(grid: Grid, weight: Tensor, parameters: Parameters) -> Tensor:
    """Half of the last of 4 significant bits: 2^-4 of the weight; below the normal codes half of 2^-9 scales.

    Rounding the scale (by 2^-9) puts the largest at 449 at most: clipped by 1, where half a step is 16.
    """
    return torch.maximum(weight.abs() / 16, per_weight(grid, parameters["scale"]) * 2**-10) * (1 + 1e-6)


def fp4_bound(grid: Grid, weight: Tensor, parameters: Parameters) -> Tensor:
    """A quarter of a step up to 2 steps; further out a quarter of the weight.

    x in steps: half of 1 for x in [2, 4], half of 2 for [4, 6], and x − 6 in [6, 8), where MXFP4 clips: never above x/4.
    """
    step = parameters["scale"] / parameters.get("global", torch.tensor(1.0))
    return torch.maximum(weight.abs() / 4, per_weight(grid, step) / 4) * (1 + 1e-6)


BOUNDS: dict[type[Grid], Callable[[Grid, Tensor, Parameters], Tensor]] = {
    IntegerGrid: integer_bound,
    NF4Grid: nf4_bound,
    FP8Grid: fp8_bound,
    MXFP4Grid: fp4_bound,
    NVFP4Grid: fp4_bound,
}


@pytest.mark.parametrize("grid", [grid for grid in ALL if type(grid) in BOUNDS], ids=repr)
@given(seed=SEEDS)
@settings(deadline=None, max_examples=10)
def test_no_weight_moves_further_than_half_a_step(grid: Grid, seed: int) -> None:
    weight = random(seed)
    parameters = grid.fit(weight)
    error = (grid.project(weight, parameters) - weight).abs()
    assert (error <= BOUNDS[type(grid)](grid, weight, parameters)).all()


EQUIVARIANT = {IntegerGrid, NF4Grid, FP8Grid, MXFP4Grid, NVFP4Grid}  # within the range of their scales


@pytest.mark.parametrize("grid", [grid for grid in ALL if type(grid) in EQUIVARIANT], ids=repr)
@given(seed=SEEDS, factor=st.sampled_from([2.0**-3, 0.5, 2.0, 2.0**7]))
@settings(deadline=None, max_examples=5)
def test_doubling_a_weight_doubles_its_projection(grid: Grid, seed: int, factor: float) -> None:
    weight = random(seed, spread=0.5)
    weight[0, : INPUTS // 2] = 1  # no group of zeros: those have the smallest scale there is, which does not double
    projected = grid.project(weight, grid.fit(weight))
    assert torch.equal(grid.project(weight * factor, grid.fit(weight * factor)), projected * factor)
