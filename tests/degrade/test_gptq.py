"""GPTQ and quantization: by hand, as properties on every grid, and on models with masks, grids and embeddings."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.config import Format, Magnitude, Quantize
from recoup.config_file import parse
from recoup.degrade import Context, magnitude, quantize
from recoup.degrade.gptq import gptq, inverse_factor
from recoup.degrade.scales import searched
from recoup.errors import ConfigError, StructureError
from recoup.models.load import LanguageModel, load
from recoup.structure.grids import GRIDS, Grid, IntegerGrid, NF4Grid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.k_quants import GGUF_GRIDS
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid
from recoup.structure.spec import Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS
from tests.degrade.conftest import correlated, error, mask_of

EVERY_GRID: list[Grid] = [
    IntegerGrid(4, 64, symmetric=True),
    IntegerGrid(3, 32, symmetric=False),
    IntegerGrid(2, None, symmetric=False),
    NF4Grid(64),
    NF4Grid(64, double_quantized=True),
    FP8Grid(),
    FP8Grid(128),
    FP8Grid(per_tensor=True),
    MXFP4Grid(),
    NVFP4Grid(),
    *(grid() for grid in GGUF_GRIDS.values()),
]


def weight_of(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * 0.1


def rounded(grid: Grid, weight: torch.Tensor) -> torch.Tensor:
    return grid.project(weight, grid.fit(weight))


def test_columns_by_hand_the_one_that_carries_most_first() -> None:
    # int3 per row: absmax 0.75 / 3 gives scale 0.25; clipping column 2, which counts 100, never pays. Order: 2, 1, 0. Column 2 is
    # on its grid. Column 1: 0.4 / 0.25 = 1.6 → 2 → 0.5, error −0.1. H + 1% of its mean diagonal 110 / 3, columns 1 and 0:
    # [[9.3667, 2.5], [2.5, 1.3667]]; its inverse is (1.3667, −2.5; −2.5, 9.3667) / det, so U01 / U00 = −2.5 / 1.3667 and
    # column 0 becomes 0.75 − (−0.1)(−2.5 / 1.3667) = 0.5671 → 2.27 → 2 → 0.5, not 0.75
    hessian = torch.tensor([[1.0, 2.5, 0], [2.5, 9, 0], [0, 0, 100]])
    weight, parameters = gptq(torch.tensor([[0.75, 0.4, 0.75]]), hessian, IntegerGrid(3, None, symmetric=True))
    assert torch.equal(weight, torch.tensor([[0.5, 0.5, 0.75]]))
    assert torch.equal(parameters["scale"], torch.tensor([[0.25]]))


def test_a_group_is_fitted_before_others_pass_errors_on_by_hand() -> None:
    # int2 (codes −1, 0, 1), groups of 2; H couples columns 0 and 2, mean diagonal 28.75. Column 0: 0.4 → 0.5, error −0.1, so
    # column 2 becomes 0.75 − 0.1 · 2.5 / 1.2875 = 0.556, three quarters of its group's scale, 0.75 → 1 → 0.75
    hessian = torch.diag(torch.tensor([9.0, 100, 1, 5]))
    hessian[0, 2] = hessian[2, 0] = 2.5
    weight, parameters = gptq(torch.tensor([[0.4, 0.5, 0.75, 0.05]]), hessian, IntegerGrid(2, 2, symmetric=True))
    assert torch.equal(weight, torch.tensor([[0.5, 0.5, 0.75, 0.0]]))
    assert torch.equal(parameters["scale"], torch.tensor([[0.5, 0.75]]))


def test_factor_by_hand() -> None:
    # H = diag(3, 1): damping 0.02, H⁻¹ = diag(1/3.02, 1/1.02)
    factor = inverse_factor(torch.diag(torch.tensor([3.0, 1.0])))
    torch.testing.assert_close(factor, torch.diag(torch.tensor([3.02, 1.02]).rsqrt()))


@given(inputs=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_factor_is_upper_and_squares_to_the_damped_inverse(inputs: int, seed: int) -> None:
    hessian = correlated(inputs, seed)
    factor = inverse_factor(hessian).double()
    damped = hessian.double() + 0.01 * hessian.diagonal().double().mean() * torch.eye(inputs, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(inputs, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("grid", EVERY_GRID, ids=lambda grid: grid.describe())
def test_every_grid(grid: Grid) -> None:
    inputs = 512 if grid.group_size == 256 else 128
    weight, hessian = weight_of(3, inputs), correlated(inputs)
    found, parameters = gptq(weight, hessian, grid)
    assert torch.equal(grid.project(found, parameters), found)  # on the grid, bit for bit
    assert {key: value.shape for key, value in parameters.items()} == {
        key: value.shape for key, value in grid.fit(weight).items()
    }
    assert error(found - weight, hessian) < error(rounded(grid, weight) - weight, hessian)


@pytest.mark.parametrize("grid", EVERY_GRID, ids=lambda grid: grid.describe())
def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_to_nearest(grid: Grid) -> None:
    inputs = 256 if grid.group_size == 256 else 128
    weight = weight_of(2, inputs, seed=1)
    found, parameters = gptq(weight, 7 * torch.eye(inputs), grid)
    nearest = searched(grid, weight, torch.ones(inputs))
    assert torch.equal(found, grid.project(weight, nearest))
    assert all(torch.equal(parameters[key], value) for key, value in nearest.items())


def test_sums_of_zero_round_to_nearest_and_clip_nothing() -> None:
    grid, weight = IntegerGrid(3, 4, symmetric=True), weight_of(2, 8)
    assert torch.equal(gptq(weight, torch.zeros(8, 8), grid)[0], rounded(grid, weight))


def test_an_input_that_is_always_zero_is_rounded_to_nearest_and_changes_nothing() -> None:
    grid, hessian, weight = IntegerGrid(3, 1, symmetric=False), correlated(8), weight_of(4, 8)
    hessian[3], hessian[:, 3] = 0, 0
    found, _ = gptq(weight, hessian, grid)
    assert torch.equal(found[:, 3], rounded(grid, weight)[:, 3])
    assert torch.isfinite(found).all()


def test_rows_do_not_see_each_other() -> None:
    grid, hessian, weight = IntegerGrid(3, 4, symmetric=True), correlated(16), weight_of(5, 16)
    torch.testing.assert_close(
        gptq(weight, hessian, grid)[0], torch.cat([gptq(row[None], hessian, grid)[0] for row in weight])
    )


@pytest.mark.parametrize("size", [32, 160])
def test_updates_that_wait_for_their_block_change_nothing_but_rounding(size: int) -> None:
    # 320 columns: blocks of 128 with groups of 32, of 160 with groups of 160
    grid, weight, hessian = IntegerGrid(4, size, symmetric=True), weight_of(4, 320), correlated(320)
    assert (gptq(weight, hessian, grid)[0] - _gptq_in_one_go(weight, hessian, grid)).abs().max() < 1e-5


def _gptq_in_one_go(weight: torch.Tensor, hessian: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    """Algorithm 1 with no waiting updates, in float64."""
    order = hessian.diagonal().argsort(descending=True)
    factor = inverse_factor(hessian[order][:, order]).double()
    left, parameters = weight.double(), searched(grid, weight, hessian.diagonal())
    for place, column in enumerate(order.tolist()):
        rest = order[place:]
        settled = grid.project(left.float(), parameters)[:, column].double()
        gap = (left[:, column] - settled) / factor[place, place]
        left[:, rest] -= gap[:, None] * factor[place, place:]
        left[:, column] = settled
    return left.float()


def test_masked_weights_stay_zero_and_are_made_up_for() -> None:
    grid, weight, hessian = IntegerGrid(4, 32, symmetric=True), weight_of(4, 64), correlated(64)
    mask = torch.rand(4, 64, generator=torch.Generator().manual_seed(3)) < 0.5
    found, parameters = gptq(weight, hessian, grid, mask)
    assert not found[~mask].any()
    assert torch.equal(grid.project(found, parameters), found)
    nearest = rounded(grid, weight.where(mask, 0))
    pruned = weight.where(mask, 0)
    assert error(found - pruned, hessian) < error(nearest - pruned, hessian)


def test_sums_with_nan_are_refused() -> None:
    hessian = torch.eye(4)
    hessian[1, 2] = hessian[2, 1] = torch.nan
    with pytest.raises(StructureError, match="calibration sums of its inputs hold NaN"):
        gptq(weight_of(2, 4), hessian, IntegerGrid(4, 4, symmetric=True))


# --- on models ---------------------------------------------------------------------------------------------------------


def quantized(folder: Path, config: Quantize, context: Context) -> tuple[LanguageModel, Structure]:
    model = load(str(folder))
    return model, quantize.apply(model, model.structure, config, context)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("start", ["gptq", "awq"])
def test_every_layout_ends_on_the_grid_with_scales_that_stay(
    tiny_models: dict[str, Path], layout: str, start: str, text_file: Path, context: Context
) -> None:
    config = Quantize(group_size=16, start=start, calibration=str(text_file), calibration_tokens=300)
    model, structure = quantized(tiny_models[layout], config, context)
    assert verify(model.model, structure).exact
    assert {c.grid for c in structure.constraints.values()} == {IntegerGrid(4, 16, symmetric=True)}
    assert not any(c.refit for c in structure.constraints.values())
    nearest, _ = quantized(tiny_models[layout], Quantize(group_size=16), context)
    assert not torch.equal(model.model(torch.tensor([[1, 2]])).logits, nearest.model(torch.tensor([[1, 2]])).logits)


@pytest.mark.parametrize("start", ["gptq", "awq"])
def test_a_mask_stays(tiny_model: Path, start: str, text_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    pruned = magnitude.apply(model, Structure(), Magnitude(pattern="2:4"), context)
    config = Quantize(group_size=16, start=start, calibration=str(text_file), calibration_tokens=300)
    both = quantize.apply(model, pruned, config, context)
    assert verify(model.model, both).exact
    for name, constraint in both.constraints.items():
        assert torch.equal(mask_of(constraint), mask_of(pruned.constraints[name]))
        assert constraint.pattern == "2:4"


@pytest.mark.parametrize("name", [name for name in get_args(Format) if name in GRIDS])
def test_every_format_rounds_a_model(name: str, tmp_path: Path, context: Context) -> None:
    from tests.conftest import save_tiny

    save_tiny("llama", tmp_path, hidden_size=128, intermediate_size=256, num_hidden_layers=1)
    notes: list[str] = []
    model, structure = quantized(tmp_path, Quantize(format=name), Context(0, context.progress, notes.append))
    checked = verify(model.model, structure)
    assert checked.exact
    formats = {c.grid.format for c in structure.constraints.values() if c.grid}
    assert name in formats  # down_proj has 256 inputs
    assert bool(notes) == (len(formats) > 1)  # the other six have 128, too few for a K-quant
    if notes:
        assert notes[0].startswith("6 weight matrices took ")


@pytest.mark.parametrize(("layout", "more"), [("llama", 1), ("qwen2", 2), ("gemma3_text", 1), ("gpt2", 1)])
def test_embeddings_and_head_are_rounded_when_told_and_tied_ones_once(
    tiny_models: dict[str, Path], layout: str, more: int, context: Context
) -> None:
    model, structure = quantized(tiny_models[layout], Quantize(group_size=16, embeddings=True), context)
    _, blocks_only = quantized(tiny_models[layout], Quantize(group_size=16), context)
    assert len(structure.constraints) == len(blocks_only.constraints) + more
    assert verify(model.model, structure).exact
    embedding = model.model.get_input_embeddings().weight
    grid = IntegerGrid(4, 16, symmetric=True)
    assert torch.equal(grid.project(embedding, grid.fit(embedding)), embedding)


def test_per_output_channel(tiny_model: Path, context: Context) -> None:
    _, structure = quantized(tiny_model, Quantize(bits=8, group_size=None), context)
    scale = structure.constraints["model.layers.0.mlp.down_proj.weight"].parameters["scale"]
    assert scale.shape == (32, 1)


def test_what_does_not_fit_names_the_layer(tiny_model: Path, text_file: Path, context: Context) -> None:
    config = Quantize(group_size=24, start="gptq", calibration=str(text_file))
    with pytest.raises(StructureError, match=r"layers\.0\.self_attn\.q_proj\.weight: group_size 24 does not divide"):
        quantized(tiny_model, config, context)


# --- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"format": "nf4", "bits": 4}, "a 4-bit format without zero points; remove `bits` and `symmetric`"),
        ({"format": "q4_0", "bits": 4}, "fixes its own codes; remove `bits`"),
        ({"format": "fp8", "symmetric": False}, "fixes its own codes"),
        ({"format": "q4_k", "group_size": 64}, "q4_k fixes its group size; remove `group_size`"),
        ({"format": "mxfp4", "group_size": 32}, "mxfp4 fixes its group size"),
        ({"format": "nf4", "group_size": None}, "give a group_size such as 64"),
        ({"bits": None}, "format int needs `bits`"),
        ({"double_quantized": True}, "a part of nf4, not of int"),
        ({"format": "q9_9"}, "Input should be"),
    ],
)
def test_impossible_combinations_say_why(tree: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Quantize, tree, "quantize")
    assert says in str(caught.value)


@pytest.mark.parametrize("name", get_args(Format))
def test_every_format_has_defaults_that_survive_a_round_trip(name: str) -> None:
    config = Quantize(format=name)
    assert config.bits == (4 if name == "int" else None)
    assert config.group_size == (64 if name in ("int", "nf4") else None)
    assert Quantize.model_validate(config.model_dump()) == config


def test_every_format_is_a_grid() -> None:
    assert set(get_args(Format)) >= set(GRIDS)
