"""What is inferred of a student made elsewhere: masks and patterns by hand, then as properties, then shapes."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from recoup.structure.grids import IntegerGrid
from recoup.structure.infer import keeps_pattern, masks_from_zeros, merge, pattern_of, shapes_against
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify


def linear(weight: torch.Tensor) -> nn.Module:
    """A model with this one weight, named `layer.weight`."""
    model = nn.ModuleDict({"layer": nn.Linear(weight.shape[1], weight.shape[0], bias=False)})
    model.get_parameter("layer.weight").data.copy_(weight)
    return model


def test_keeps_pattern_by_hand() -> None:
    # groups of four inputs keep 2, 1 | 2, 2: at most two each
    mask = torch.tensor([[1, 0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0]]).bool()
    assert keeps_pattern(mask, "2:4")
    assert keeps_pattern(mask, "4:8")
    assert not keeps_pattern(mask, "1:4")
    # 3 of the first four, 1 of the others: four of eight
    uneven = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 0]]).bool()
    assert not keeps_pattern(uneven, "2:4")
    assert pattern_of(uneven) == "4:8"
    # a pattern runs along the inputs: columns of two nonzeros in four say nothing
    assert pattern_of(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()) is None
    assert not keeps_pattern(torch.zeros(1, 6).bool(), "2:4")  # six inputs hold no whole number of groups


def test_a_mask_is_found_where_enough_zeros_are() -> None:
    weight = torch.ones(4, 10)
    weight[0, :2] = 0  # 2 of 40: exactly 5%
    found = masks_from_zeros(linear(weight), {"layer.weight": False})
    mask = found["layer.weight"].mask_OI
    assert mask is not None
    assert torch.equal(mask, weight != 0)
    assert found["layer.weight"].pattern is None
    weight[0, 1] = 1
    assert masks_from_zeros(linear(weight), {"layer.weight": False}) == {}
    assert list(masks_from_zeros(linear(weight), {"layer.weight": False}, least=0.02)) == ["layer.weight"]
    assert masks_from_zeros(linear(weight * 0), {}) == {}  # only what is asked for


def test_a_transposed_weight_has_its_pattern_along_the_inputs() -> None:
    layer = Conv1D(nf=3, nx=8)  # stored 8 inputs × 3 outputs
    layer.weight.data.fill_(1)
    layer.weight.data[[0, 1, 4, 5]] = 0  # two of every four inputs
    model = nn.ModuleDict({"layer": layer})
    constraint = masks_from_zeros(model, {"layer.weight": True})["layer.weight"]
    assert constraint.transposed
    assert constraint.pattern == "2:4"
    assert constraint.mask_OI is not None
    assert constraint.mask_OI.shape == (3, 8)
    assert verify(model, Structure({"layer.weight": constraint})).exact


@given(
    outputs=st.integers(1, 4),
    groups=st.integers(1, 4),
    pattern=st.sampled_from([(1, 4), (2, 4), (4, 8)]),
    seed=st.integers(0, 1000),
)
def test_what_a_pruner_wrote_is_read_back(outputs: int, groups: int, pattern: tuple[int, int], seed: int) -> None:
    kept, size = pattern
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(outputs, groups, size, generator=generator).argsort(-1)
    mask = (order < kept).view(outputs, groups * size)
    assert mask.float().mean() == kept / size
    weight = torch.rand(outputs, groups * size, generator=generator) + 1
    constraint = masks_from_zeros(linear(weight * mask), {"layer.weight": False})["layer.weight"]
    assert constraint.mask_OI is not None
    assert torch.equal(constraint.mask_OI, mask)
    assert constraint.pattern is not None
    # one more weight in a full group breaks that pattern
    full = mask.clone()
    full[0, : kept + 1] = True
    full[0, kept + 1 : size] = False
    assert not keeps_pattern(full, f"{kept}:{size}")


def test_shapes_by_hand() -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 64,
    }
    teacher = LlamaConfig(**sizes, num_key_value_heads=2)
    student = LlamaConfig(**{**sizes, "num_hidden_layers": 3, "num_attention_heads": 2}, num_key_value_heads=1)
    assert shapes_against(student, teacher) == {
        "num_hidden_layers": {"before": 4, "after": 3},
        "num_attention_heads": {"before": 4, "after": 2},
        "num_key_value_heads": {"before": 2, "after": 1},
    }
    assert shapes_against(teacher, student) == {}  # grown is not pruned
    assert shapes_against(teacher, teacher) == {}


def test_a_width_that_gpt2_leaves_out_is_four_times_the_model_width() -> None:
    teacher, student = GPT2Config(n_embd=32), GPT2Config(n_embd=32, n_inner=100)
    assert shapes_against(student, teacher) == {"n_inner": {"before": 128, "after": 100}}


@pytest.mark.parametrize("value", [None, "many", [1, 2]])
def test_a_field_that_is_no_number_is_skipped(value: object) -> None:
    assert shapes_against(SimpleNamespace(num_key_value_heads=value), SimpleNamespace(num_key_value_heads=2)) == {}


def test_what_is_declared_comes_first() -> None:
    declared = Structure({"a": Constraint(grid=IntegerGrid(4, 16, True))}, {"hidden_size": {"before": 8, "after": 4}})
    mask = Constraint(mask_OI=torch.ones(1, 4).bool())
    inferred = Structure(
        {"a": mask, "b": mask}, {"hidden_size": {"before": 6, "after": 4}, "vocab_size": {"before": 2, "after": 1}}
    )
    merged = merge(declared, inferred)
    assert merged.constraints == {"a": declared.constraints["a"], "b": mask}
    assert merged.shapes == {"hidden_size": {"before": 8, "after": 4}, "vocab_size": {"before": 2, "after": 1}}
