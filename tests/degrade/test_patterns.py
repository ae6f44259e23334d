"""Magnitude, Wanda and SparseGPT: by hand, as properties, and on models; in every pattern, and on top of what is kept already."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.config import Magnitude, Quantize, Sparse, SparseGPT, Wanda
from recoup.config_file import parse
from recoup.degrade import METHODS, Context
from recoup.degrade.sparsegpt import sparsegpt
from recoup.degrade.wanda import wanda
from recoup.errors import ConfigError, StructureError
from recoup.models.load import LanguageModel, load
from recoup.structure.masks import magnitude_mask, n_of_m_mask
from recoup.structure.spec import Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS
from tests.degrade.conftest import correlated, error, mask_of

COUPLED = torch.tensor([[9.0, 2.5], [2.5, 1.0]])
PRUNERS = [Magnitude, Wanda, SparseGPT]


def weight_of(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def injure(
    model: LanguageModel, structure: Structure, config: Magnitude | Wanda | SparseGPT | Quantize, context: Context
) -> Structure:
    return METHODS[config.type].apply(model, structure, config, context)


# --- Wanda -------------------------------------------------------------------------------------------------------------


def test_wanda_by_hand() -> None:
    # scores |W| · √Σx² with norms (1, 2, 3, 10): row 0: (4, 6, 6.3, 1) loses its 1 and its 4, though 4 is its largest
    # weight; row 1, a hundred times as large, loses as many: (100, 400, 900, 4000) its first two
    weight = torch.tensor([[4.0, -3, 2.1, 0.1], [100, 200, -300, 400]])
    square_sum = torch.tensor([1.0, 4, 9, 100])
    assert wanda(weight, square_sum, "unstructured", 0.5).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]
    assert wanda(weight, square_sum, "1:2", 0.5).tolist() == [[False, True, True, False], [False, True, False, True]]


# --- SparseGPT ---------------------------------------------------------------------------------------------------------


def test_sparsegpt_by_hand() -> None:
    # H + 1% of its mean diagonal 5 = [[9.05, 2.5], [2.5, 1.05]], determinant 9.5025 − 6.25 = 3.2525. Removing column 0 costs
    # w0² / U00² = w0² · 3.2525 / 1.05 = 3.0976 w0², removing column 1, when nothing follows, w1² / U11² = 1.05 w1².
    # (0.4, 0.75): 0.4956 < 0.5906, column 0 goes, and column 1 becomes 0.75 + 0.4 · 2.5 / 1.05 = 1.702381
    weight, mask = sparsegpt(torch.tensor([[0.4, 0.75]]), COUPLED, "1:2", 0.5)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 1.702381]]))
    assert mask.tolist() == [[False, True]]
    # (0.5, 0.75): 0.7744 > 0.5906, column 1 goes though it is larger; column 0 is settled by then and stays
    weight, mask = sparsegpt(torch.tensor([[0.5, 0.75]]), COUPLED, "1:2", 0.5)
    assert torch.equal(weight, torch.tensor([[0.5, 0.0]]))
    assert mask.tolist() == [[True, False]]


@given(rows=st.integers(1, 6), inputs=st.integers(1, 24), sparsity=st.floats(0.05, 0.95), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_sparsegpt_of_unrelated_inputs_is_magnitude(rows: int, inputs: int, sparsity: float, seed: int) -> None:
    weight = weight_of(rows, inputs, seed)
    found, mask = sparsegpt(weight, 5 * torch.eye(inputs), "unstructured", sparsity)
    assert torch.equal(mask, magnitude_mask(weight, sparsity))
    assert torch.equal(found, weight.where(mask, 0))


def test_sparsegpt_of_unrelated_inputs_is_magnitude_in_groups() -> None:
    weight = weight_of(3, 264)  # two blocks of columns and a half
    found, mask = sparsegpt(weight, torch.eye(264), "2:4", 0.5)
    assert torch.equal(mask, n_of_m_mask(weight.abs(), 2, 4))
    assert torch.equal(found, weight.where(mask, 0))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:3", "5:8"])
def test_sparsegpt_meets_its_pattern_and_makes_up_for_what_it_removes(pattern: str) -> None:
    weight, hessian = weight_of(5, 264), correlated(264)
    found, mask = sparsegpt(weight, hessian, pattern, 0.4)
    assert torch.equal(found != 0, mask)
    if pattern == "unstructured":
        assert int((~mask).sum()) == round(0.4 * mask.numel())
    else:
        kept, group = map(int, pattern.split(":"))
        assert (mask.view(5, -1, group).sum(-1) == kept).all()
    assert error(found - weight, hessian) < 0.5 * error(weight.where(mask, 0) - weight, hessian)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_keeps_an_old_mask(pattern: str) -> None:
    weight, hessian = weight_of(4, 160), correlated(160)
    old = magnitude_mask(weight, 0.25)
    found, mask = sparsegpt(weight, hessian, pattern, 0.5, old)
    assert not (mask & ~old).any()
    assert torch.equal(found != 0, mask)
    if pattern == "unstructured":
        assert int((~mask).sum()) == 320  # what was zero counts: no more go than were asked for


def test_sparsegpt_says_what_does_not_fit() -> None:
    with pytest.raises(StructureError, match="a 2:4 mask does not fit 6 inputs"):
        sparsegpt(weight_of(2, 6), torch.eye(6), "2:4", 0.5)


# --- on models ---------------------------------------------------------------------------------------------------------


def settings_of(kind: type, text_file: Path, **more: object) -> Magnitude | Wanda | SparseGPT:
    calibration = {} if kind is Magnitude else {"calibration": str(text_file), "calibration_tokens": 300}
    return kind(**calibration, **more)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", PRUNERS)
def test_every_layout_meets_its_pattern(
    tiny_models: dict[str, Path], layout: str, kind: type, text_file: Path, context: Context
) -> None:
    for config in (settings_of(kind, text_file, sparsity=0.25), settings_of(kind, text_file, pattern="2:4")):
        model = load(str(tiny_models[layout]))
        structure = injure(model, Structure(), config, context)
        checked = verify(model.model, structure)
        assert checked.exact
        assert checked.sparsity == config.sparsity
        for constraint in structure.constraints.values():
            assert constraint.pattern == (None if config.pattern == "unstructured" else "2:4")
            if config.pattern == "2:4":
                assert (mask_of(constraint).unflatten(1, (-1, 4)).sum(-1) == 2).all()
        assert "50.0% zeros (2:4)" in structure.describe() or config.pattern == "unstructured"


@pytest.mark.parametrize("kind", PRUNERS)
def test_what_was_pruned_stays_pruned(tiny_model: Path, kind: type, text_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    first = injure(model, Structure(), Magnitude(pattern="2:4"), context)
    second = injure(model, first, settings_of(kind, text_file, sparsity=0.75), context)
    assert verify(model.model, second).sparsity == 0.75
    for name, constraint in second.constraints.items():
        assert not (mask_of(constraint) & ~mask_of(first.constraints[name])).any()
        assert constraint.pattern == "2:4"  # fewer weights in the same places still keep it


@pytest.mark.parametrize("kind", [Magnitude, Wanda])
def test_a_grid_stays(tiny_model: Path, kind: type, text_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    first = injure(model, Structure(), Quantize(group_size=16, symmetric=False), context)
    second = injure(model, first, settings_of(kind, text_file), context)
    assert verify(model.model, second).exact
    for name, constraint in second.constraints.items():
        assert constraint.grid == first.constraints[name].grid


def test_sparsegpt_refuses_a_grid(tiny_model: Path, text_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    structure = injure(model, Structure(), Quantize(group_size=16), context)
    with pytest.raises(StructureError, match=r"q_proj\.weight lies on a grid \(int4.*prune before you quantize"):
        injure(model, structure, settings_of(SparseGPT, text_file), context)


def test_the_layer_that_does_not_fit_is_named(tiny_model: Path, text_file: Path, context: Context) -> None:
    for kind in PRUNERS:
        with pytest.raises(
            StructureError, match=r"layers\.0\.self_attn\.q_proj\.weight: a 2:5 mask does not fit 32 inputs"
        ):
            injure(load(str(tiny_model)), Structure(), settings_of(kind, text_file, pattern="2:5"), context)


# --- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PRUNERS)
def test_a_pattern_decides_the_sparsity(kind: type[Sparse]) -> None:
    assert kind().sparsity == 0.5
    assert kind(pattern="1:4").sparsity == 0.75  # 3 of 4 are zero
    assert kind.model_validate(kind(pattern="1:3").model_dump()) == kind(pattern="1:3")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"pattern": "2:4", "sparsity": 0.6}, "pattern 2:4 makes 0.5 of the weights zero; remove sparsity 0.6"),
        ({"pattern": "4:4"}, "keeps every weight; keep fewer than all, such as 2:4"),
        ({"pattern": "5:4"}, "keeps every weight"),
        ({"pattern": "0:4"}, "pattern"),
        ({"pattern": "4:0"}, "pattern"),
        ({"pattern": "two of four"}, "pattern"),
    ],
)
def test_patterns_that_cannot_be(tree: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Wanda, tree, "wanda")
    assert says in str(caught.value)
