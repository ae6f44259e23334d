"""Importance and slicing by hand, then: neurons that do nothing go first, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from recoup.config import FFNWidth, Quantize
from recoup.degrade import Context, quantize
from recoup.degrade.cut import blueprint, conform, cut_layer, kept_count, most_important
from recoup.degrade.ffn_width import apply, importance
from recoup.errors import DataError, StructureError
from recoup.models.layers import FeedForward, feed_forwards, intermediate_field, intermediate_size, is_transposed
from recoup.models.load import load
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS

IDS = torch.tensor([[72, 101, 108, 108, 111]])


def narrow(model: PreTrainedModel, part: FeedForward) -> None:
    """Keep the first 40 neurons of one block."""
    for layer in part.up:
        cut_layer(model, layer, torch.arange(40), 0, {})
    cut_layer(model, part.down, torch.arange(40), 1, {})


def test_importance_by_hand() -> None:
    # columns (3, 4) and (0, 12) have norms 5 and 12: importances 2 · 5 = 10 and 1 · 12 = 12
    down = torch.tensor([[3.0, 0.0], [4.0, 12.0]])
    assert importance(torch.tensor([2.0, 1.0]), down).tolist() == [10.0, 12.0]


def test_most_important_by_hand() -> None:
    assert most_important(torch.tensor([1.0, 5.0, 2.0, 5.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_kept_count_by_hand() -> None:
    assert kept_count(1536, 0.1, "neurons") == 1382  # 153.6 rounds to 154
    with pytest.raises(StructureError, match="removes all 4 neurons; lower it"):
        kept_count(4, 0.95, "neurons")
    with pytest.raises(StructureError, match="removes none of 3 neurons; raise it"):
        kept_count(3, 0.1, "neurons")  # 0.3 rounds to 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neurons_that_do_nothing_are_the_ones_removed(
    tiny_models: dict[str, Path], layout: str, text_file: Path, context: Context
) -> None:
    model = load(str(tiny_models[layout]))
    width = intermediate_size(model.model)
    dead = torch.randperm(width, generator=torch.Generator().manual_seed(3))[: width // 4]
    for part in feed_forwards(model.model):
        module = model.model.get_submodule(part.down)
        weight = module.get_parameter("weight").data
        (weight.T if is_transposed(module) else weight)[:, dead] = 0
    before = model.model(IDS).logits

    config = FFNWidth(fraction=0.25, calibration=str(text_file), calibration_tokens=100)
    structure = apply(model, Structure(), config, context)
    torch.testing.assert_close(model.model(IDS).logits, before, rtol=1e-4, atol=1e-5)
    field, left = intermediate_field(model.model), width - width // 4
    assert structure.shapes == {field: {"before": width, "after": left}}
    assert getattr(model.model.config, field) == left
    assert len(feed_forwards(model.model)) == 2  # every layer has the new width

    again = apply(model, structure, config, context)
    assert again.shapes[field] == {"before": width, "after": left - left // 4}


def test_a_pattern_is_named_as_long_as_it_holds(tiny_model: Path) -> None:
    # keeps inputs 0 and 1 of every four, so 2:4; without inputs 2 and 3 the first four all stay
    pattern = Constraint(mask_OI=torch.tensor([1, 1, 0, 0]).repeat(32, 12).bool(), pattern="2:4")
    for axis, gone, holds in [(0, [2, 3], True), (1, [0, 1, 2, 3], True), (1, [2, 3, 6, 7], False)]:
        model = load(str(tiny_model)).model
        layer = feed_forwards(model)[0].down
        kept = torch.tensor([i for i in range((32, 48)[axis]) if i not in gone])
        constraints = {f"{layer}.weight": pattern}
        cut_layer(model, layer, kept, axis, constraints)
        assert constraints[f"{layer}.weight"].pattern == ("2:4" if holds else None), (axis, gone)


def test_what_the_config_cannot_say_is_refused(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    plan = blueprint(model, {"intermediate_size": 40})
    first, second = feed_forwards(model)
    narrow(model, first)
    with pytest.raises(
        StructureError, match=r"LlamaForCausalLM cannot express this cut .*expects shape .* the cut has"
    ):
        conform(model, plan, {"intermediate_size": 40})
    assert model.config.intermediate_size == 48
    narrow(model, second)
    conform(model, plan, {"intermediate_size": 40})
    assert model.get_submodule(first.down).in_features == model.config.intermediate_size == 40


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_cut_with_their_weights(
    tiny_models: dict[str, Path], layout: str, text_file: Path, context: Context
) -> None:
    model = load(str(tiny_models[layout]))
    constraints = {}
    for part in feed_forwards(model.model):
        for layer in (*part.up, part.down):
            weight = model.model.get_parameter(f"{layer}.weight").data
            free = Constraint(transposed=is_transposed(model.model.get_submodule(layer)))
            constraint = replace(free, mask_OI=magnitude_mask(free.view_OI(weight), 0.5))
            weight.copy_(constraint.project(weight))
            constraints[f"{layer}.weight"] = constraint
    config = FFNWidth(fraction=0.1, calibration=str(text_file), calibration_tokens=100)
    structure = apply(model, Structure(constraints), config, context)
    checked = verify(model.model, structure)
    assert checked.exact
    for name, constraint in structure.constraints.items():
        assert constraint.mask_OI is not None
        assert constraint.mask_OI.shape == constraint.view_OI(model.model.get_parameter(name)).shape


def test_a_quantized_model_is_refused_before_anything_is_done(tiny_model: Path, context: Context) -> None:
    model = load(str(tiny_model))
    structure = quantize.apply(model, Structure(), Quantize(group_size=16), context)
    with pytest.raises(StructureError, match=r"_proj\.weight lies on a grid .*; prune before you quantize"):
        apply(model, structure, FFNWidth(calibration="missing.txt"), context)


def test_missing_calibration_file_is_refused(tiny_model: Path, context: Context) -> None:
    model = load(str(tiny_model))
    with pytest.raises(DataError, match=r"missing\.txt: no such calibration file"):
        apply(model, Structure(), FFNWidth(calibration="missing.txt"), context)
