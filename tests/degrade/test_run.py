"""Every injury saves an exact, reloadable checkpoint, in every layout and on top of another injury."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM

from recoup.config import SFT, Degrade, FFNWidth, Magnitude, Quantize
from recoup.degrade import METHODS, describe_injuries
from recoup.degrade.run import DegradeInputs, run
from recoup.errors import StructureError
from recoup.models.load import load
from recoup.results import DegradeResult
from recoup.structure.grids import IntegerGrid, NF4Grid
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS

IDS = torch.tensor([[72, 101, 108, 108, 111]])
GROUPED = Quantize(bits=3, group_size=16)


def logits(checkpoint: str) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(IDS).logits


def injure(config: Degrade, source: str | Path, folder: Path) -> DegradeResult:
    return run(config, DegradeInputs(str(source), seed=0), folder)


def test_every_config_has_a_method_and_a_line() -> None:
    types = {schema["properties"]["type"]["const"] for schema in TypeAdapter(Degrade).json_schema()["$defs"].values()}
    assert set(METHODS) == set(describe_injuries()) == types


def test_importing_the_table_imports_no_torch() -> None:
    code = "import recoup.degrade, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "config",
    [
        GROUPED,
        Quantize(format="nf4"),
        Magnitude(sparsity=0.5),
        FFNWidth(fraction=0.1, calibration="TEXT", calibration_tokens=200),
    ],
    ids=lambda config: config.type,
)
def test_checkpoint_is_exact_damaged_and_plainly_loadable(
    tiny_models: dict[str, Path], layout: str, config: Degrade, text_file: Path, tmp_path: Path
) -> None:
    if isinstance(config, FFNWidth):
        config = config.model_copy(update={"calibration": str(text_file)})
    seen: list[tuple[str, int, int]] = []
    inputs = DegradeInputs(str(tiny_models[layout]), seed=0)
    result = run(config, inputs, tmp_path / "stage", lambda *progress: seen.append(progress))
    assert DegradeResult.read(tmp_path / "stage" / "result.json") == result
    assert result.checkpoint == str(tmp_path / "stage" / "checkpoint")
    assert seen[-1][1] == seen[-1][2] == len(seen)

    damaged = load(result.checkpoint)
    checked = verify(damaged.model, read_structure(Path(result.checkpoint)))
    assert checked.exact
    assert (result.num_constrained, result.sparsity) == (checked.num_constrained, checked.sparsity)
    assert torch.equal(logits(result.checkpoint), damaged.model(IDS).logits)
    assert not torch.allclose(logits(result.checkpoint), logits(str(tiny_models[layout])))


def test_sparsity_is_met_exactly_and_small_weights_go_first(tiny_model: Path, tmp_path: Path) -> None:
    result = injure(Magnitude(sparsity=0.25), tiny_model, tmp_path)
    assert result.sparsity == 0.25  # every layer's size is a multiple of 4
    assert result.summary == "25.0% zeros: 14 weight matrices"  # 7 linear layers in each of 2 blocks
    source, pruned = load(str(tiny_model)).model, load(result.checkpoint).model
    for name in read_structure(Path(result.checkpoint)).constraints:
        before, after = source.get_parameter(name), pruned.get_parameter(name)
        gone = after == 0
        assert torch.equal(after[~gone], before[~gone])
        assert before[gone].abs().max() <= before[~gone].abs().min()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [GROUPED, Quantize(group_size=8, symmetric=False), Quantize(format="nf4")])
def test_magnitude_and_quantize_compose_in_either_order(
    tiny_models: dict[str, Path], layout: str, grid: Quantize, tmp_path: Path
) -> None:
    for first, second in ((Magnitude(), grid), (grid, Magnitude())):
        once = injure(first, tiny_models[layout], tmp_path / f"{first.type}-once")
        twice = injure(second, once.checkpoint, tmp_path / f"{first.type}-twice")
        structure = read_structure(Path(twice.checkpoint))
        assert verify(load(twice.checkpoint).model, structure).exact
        assert all(c.grid is not None and c.mask_OI is not None for c in structure.constraints.values())
        assert twice.sparsity >= 0.5  # rounding adds zeros of its own


def test_a_new_grid_replaces_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    once = injure(GROUPED, tiny_model, tmp_path / "once")
    twice = injure(Quantize(format="nf4", group_size=32), once.checkpoint, tmp_path / "twice")
    grids = {constraint.grid for constraint in read_structure(Path(twice.checkpoint)).constraints.values()}
    assert grids == {NF4Grid(32)}
    assert {c.grid for c in read_structure(Path(once.checkpoint)).constraints.values()} == {
        IntegerGrid(3, 16, symmetric=True)
    }


def test_pruning_more_keeps_the_old_zeros(tiny_model: Path, tmp_path: Path) -> None:
    once = injure(Magnitude(sparsity=0.5), tiny_model, tmp_path / "once")
    twice = injure(Magnitude(sparsity=0.75), once.checkpoint, tmp_path / "twice")
    less = injure(Magnitude(sparsity=0.25), once.checkpoint, tmp_path / "less")
    assert (twice.sparsity, less.sparsity) == (0.75, 0.5)


def test_group_size_that_does_not_divide_names_the_layer(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StructureError, match=r"layers\.0\.self_attn\.q_proj\.weight: group_size 24 does not divide .* use"
    ):
        injure(Quantize(group_size=24), tiny_model, tmp_path)
    assert not (tmp_path / "checkpoint").exists()
    assert not (tmp_path / "result.json").exists()


def test_fine_tuning_a_pruned_and_quantized_model_keeps_both(tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    pruned = injure(Magnitude(), tiny_model, tmp_path / "pruned")
    both = injure(GROUPED, pruned.checkpoint, tmp_path / "both")
    tuned = injure(SFT(train_file=str(rows_file), steps=3, learning_rate=1e-2), both.checkpoint, tmp_path / "tuned")
    old, new = read_structure(Path(both.checkpoint)), read_structure(Path(tuned.checkpoint))
    assert verify(load(tuned.checkpoint).model, new).exact
    for name, constraint in old.constraints.items():
        assert new.constraints[name].grid == constraint.grid
        mask, kept = constraint.mask_OI, new.constraints[name].mask_OI
        assert mask is not None
        assert kept is not None
        assert torch.equal(kept, mask)
    assert not torch.equal(logits(tuned.checkpoint), logits(both.checkpoint))
