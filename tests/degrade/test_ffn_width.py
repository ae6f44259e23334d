"""Importance and slicing by hand, then: neurons that do nothing go first, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recoup.config import FFNWidth, Quantize
from recoup.degrade import Context, quantize
from recoup.degrade.ffn_width import absolute_sum, apply, importance, kept_count, mean_activations, most_important
from recoup.errors import DataError, StructureError
from recoup.models.layers import feed_forwards, intermediate_field, intermediate_size, is_transposed
from recoup.models.load import load
from recoup.models.sample import pack
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS

IDS = torch.tensor([[72, 101, 108, 108, 111]])


def test_importance_by_hand() -> None:
    # two tokens and a pad: |1| + |−3| = 4 and |2| + |0| = 2, means 2 and 1
    hidden = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [-3.0, 0.0]]])
    sums = absolute_sum(hidden, torch.tensor([[False, True, True]]))
    assert sums.tolist() == [4.0, 2.0]
    # columns (3, 4) and (0, 12) have norms 5 and 12: importances 2 · 5 = 10 and 1 · 12 = 12
    down = torch.tensor([[3.0, 0.0], [4.0, 12.0]])
    assert importance(sums / 2, down).tolist() == [10.0, 12.0]


def test_most_important_by_hand() -> None:
    assert most_important(torch.tensor([1.0, 5.0, 2.0, 5.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_kept_count_by_hand() -> None:
    assert kept_count(1536, 0.1) == 1382  # 153.6 rounds to 154
    with pytest.raises(StructureError, match="removes all 4 neurons"):
        kept_count(4, 0.95)


def test_mean_activations_ignore_pads_and_batching(tiny_model: Path, context: Context) -> None:
    model = load(str(tiny_model))
    part = feed_forwards(model.model)[1]
    rows = [[72, 101, 108, 108, 111], [66, 121, 101]]
    together = mean_activations(model, [part.down], [pack(rows, [[], []], 0)], context)
    apart = mean_activations(model, [part.down], [pack([row], [[]], 0) for row in rows], context)
    torch.testing.assert_close(together[part.down], apart[part.down])


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
