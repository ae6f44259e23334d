"""AWQ: the scale by hand, the folds it finds in every layout, and that folding changes nothing before rounding."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from recoup.degrade.awq import Fold, apply_fold, awq, awq_scale, best_scale, find_folds, output_error
from recoup.degrade.gather import Statistics
from recoup.degrade.walk import Visit, walk
from recoup.errors import StructureError
from recoup.models.load import LanguageModel, load
from recoup.models.sample import pack
from recoup.structure.grids import Grid, IntegerGrid
from recoup.structure.spec import Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS, save_tiny

GRID = IntegerGrid(3, 4, symmetric=True)
BATCH = pack([[72, 101, 108, 108, 111, 33], [7, 8, 9]], [[], []], 0)
ATTENTION, FEED_FORWARD = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
FOLDS = {
    "llama": [
        Fold(ATTENTION, "input_layernorm", "norm"),
        Fold(FEED_FORWARD, "post_attention_layernorm", "norm"),
        Fold(("mlp.down_proj",), "mlp.up_proj", "rows"),
    ],
    "gemma3_text": [
        Fold(ATTENTION, "input_layernorm", "norm_plus_one"),
        Fold(FEED_FORWARD, "pre_feedforward_layernorm", "norm_plus_one"),
        Fold(("mlp.down_proj",), "mlp.up_proj", "rows"),
    ],
    "gpt2": [Fold(("attn.c_attn",), "ln_1", "norm"), Fold(("mlp.c_fc",), "ln_2", "norm")],
}
FOLDS["qwen2"] = FOLDS["llama"]
FULL_HEADS = Fold(("self_attn.o_proj",), "self_attn.v_proj", "rows")


def to_grid(grid: Grid, weight: torch.Tensor) -> torch.Tensor:
    return grid.project(weight, grid.fit(weight))


def unwatched(_done: int, _total: int) -> None:
    pass


def folds_of(model: LanguageModel) -> list[Fold]:
    found: list[Fold] = []

    def look(visit: Visit) -> None:
        within = {id(module): name for name, module in visit.block.named_modules()}
        groups: dict[int, list[str]] = {}
        for layer, statistics in visit.statistics.items():
            groups.setdefault(id(statistics), []).append(within[id(model.model.get_submodule(layer))])
        if visit.index == 0:
            found.extend(find_folds(visit, [tuple(group) for group in groups.values()]))

    walk(model, [BATCH], {"absolute_sum"}, look, unwatched)
    return found


def test_scale_by_hand() -> None:
    # (1, 4) to the power 1/2 is (1, 2); divided by √(2 · 1)
    torch.testing.assert_close(awq_scale(torch.tensor([1.0, 4.0]), 0.5), torch.tensor([0.70710678, 1.41421356]))
    assert torch.equal(awq_scale(torch.tensor([1.0, 4.0]), 0.0), torch.ones(2))
    # an input that is always 0 counts as 1e-4: √(1e-4 · 1) = 1e-2
    torch.testing.assert_close(awq_scale(torch.tensor([0.0, 1.0]), 0.5), torch.tensor([0.01, 100.0]))


def test_output_error_by_hand() -> None:
    # tokens (1, 1) and (1, 0) have Σxxᵀ = (2, 1; 1, 1); Δ = (1, −3): Δx = −2 and 1, squares 4 + 1
    assert output_error(torch.tensor([[1.0, -3.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]])) == 5


def test_a_salient_input_is_scaled_up() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator)
    x[:, 5] *= 30
    weight = torch.randn(8, 16, generator=generator)
    statistics = Statistics(200, absolute_sum_I=x.abs().sum(0), second_moment_II=x.T @ x)
    scale = best_scale([weight], [partial(to_grid, GRID)], statistics)
    assert scale.argmax() == 5
    plain, scaled = to_grid(GRID, weight), to_grid(GRID, weight * scale) / scale
    assert output_error(scaled - weight, x.T @ x) < 0.5 * output_error(plain - weight, x.T @ x)


def test_inputs_alike_are_not_scaled() -> None:
    statistics = Statistics(10, absolute_sum_I=torch.full((8,), 10.0), second_moment_II=torch.eye(8))
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(best_scale([weight], [partial(to_grid, GRID)], statistics), torch.ones(8))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folds_of_every_layout(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    assert sorted(folds_of(model), key=str) == sorted(FOLDS[layout], key=str)
    assert all(
        torch.equal(value, before[name]) for name, value in model.model.state_dict().items()
    )  # trying leaves no trace


def test_value_folds_into_output_where_heads_are_not_grouped(tmp_path: Path) -> None:
    assert FULL_HEADS in folds_of(load(str(save_tiny("llama", tmp_path, num_key_value_heads=4))))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folding_changes_the_weights_and_not_the_model(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    before = model.model(BATCH.tokens_BT).logits
    block = "transformer.h.0" if layout == "gpt2" else "model.layers.0"
    for fold in FOLDS[layout]:
        linear = model.model.get_submodule(f"{block}.{fold.linears[0]}")
        inputs = linear.weight.shape[0 if layout == "gpt2" else 1]
        old = linear.weight.clone()
        with torch.no_grad():
            apply_fold(model.model.get_submodule(block), fold, torch.linspace(0.3, 3, inputs))
        assert not torch.equal(linear.weight, old)
    torch.testing.assert_close(model.model(BATCH.tokens_BT).logits, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_rounding_the_model_stays_what_it_was(tiny_models: dict[str, Path], layout: str) -> None:
    # 8 bits for each weight alone: rounding to float16 scales is all that is left, and the search runs all the same
    model = load(str(tiny_models[layout]))
    before = model.model(BATCH.tokens_BT).logits
    structure = awq(model, Structure(), [BATCH], lambda inputs: IntegerGrid(8, 1, symmetric=True), unwatched)
    assert verify(model.model, structure).exact
    after = model.model(BATCH.tokens_BT).logits
    assert (after - before).abs().max() < 0.02 * before.abs().max()


def test_an_architecture_without_folds_is_refused() -> None:
    block = nn.Sequential(nn.Linear(4, 4))
    visit = Visit(0, block, {}, lambda: block(torch.eye(4)))
    with (
        torch.no_grad(),
        pytest.raises(StructureError, match="awq does not fit this architecture: Sequential has no norm"),
    ):
        find_folds(visit, [("0",)])


def test_a_block_that_folding_changes_is_refused(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    block = model.model.model.layers[1]
    norm = block.input_layernorm.forward
    block.input_layernorm.forward = lambda hidden: norm(hidden) + 1.0  # the second block is unlike the first
    with pytest.raises(StructureError, match="block 1 changes when scales are folded; use start: gptq"):
        awq(model, Structure(), [BATCH], lambda inputs: GRID, unwatched)
