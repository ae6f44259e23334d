"""Drift of what attention, feed-forward parts and heads put out."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from recoup.diagnose.outputs import PartDrift, part_drift, square_sums
from recoup.models.capture import Part, states_and_parts
from recoup.models.load import load
from recoup.models.sample import pack
from tests.conftest import LAYOUTS, save_tiny

ROLLOUTS = pack([[5, 6, 7], [8, 9, 10, 11, 12]], [[20, 21, 22, 23], [24]], pad=258)


def drift_of(teacher: PreTrainedModel, student: PreTrainedModel) -> tuple[PartDrift, ...]:
    own, others = (states_and_parts(model, ROLLOUTS)[1] for model in (student, teacher))
    sums = square_sums(own, others, partners=range(2), mask_N=ROLLOUTS.attention_BT.flatten())
    return part_drift([sums], num_blocks=2)


def test_by_hand() -> None:
    """Two heads of width 1 at three tokens, the last masked out.

    Head 0: teacher 3, 4, student 3, 5.5: √(1.5² / (3² + 4²)) = 1.5/5 = 0.3. Head 1: teacher 1, 0, student 2, 0: 1.
    The whole part of the teacher, width 2 over both batches: 9 + 16 + 1 and a second batch with 2² at one token, unmoved:
    √((2.25 + 1) / (26 + 4)).
    """
    teacher_NHd = torch.tensor([[[3.0], [1.0]], [[4.0], [0.0]], [[100.0], [100.0]]])
    student_NHd = torch.tensor([[[3.0], [2.0]], [[5.5], [0.0]], [[-7.0], [0.0]]])
    mask_N = torch.tensor([True, True, False])
    student: dict[Part, torch.Tensor] = {("heads", 0): student_NHd, ("attention", 0): student_NHd.reshape(3, 1, 2)}
    teacher: dict[Part, torch.Tensor] = {("heads", 0): teacher_NHd, ("attention", 0): teacher_NHd.reshape(3, 1, 2)}
    first = square_sums(student, teacher, [0], mask_N)
    assert first["heads", 0].tolist() == [[2.25, 1.0], [25.0, 1.0]]
    more: dict[Part, torch.Tensor] = {
        ("heads", 0): torch.zeros(1, 2, 1),
        ("attention", 0): torch.tensor([[[2.0, 0.0]]]),
    }
    second = square_sums(more, more, [0], torch.tensor([True]))
    (drift,) = part_drift([first, second], num_blocks=1)
    assert drift.heads == pytest.approx((0.3, 1.0))
    assert drift.attention == pytest.approx((3.25 / 30) ** 0.5)
    assert drift.ffn is None


def test_silent_parts() -> None:
    """Nothing in both models: no drift. Nothing in the teacher alone: no finite one."""
    silent: dict[Part, torch.Tensor] = {("ffn", 0): torch.zeros(2, 1, 3)}
    loud: dict[Part, torch.Tensor] = {("ffn", 0): torch.ones(2, 1, 3)}
    both = torch.tensor([True, True])
    assert part_drift([square_sums(silent, silent, [0], both)], 1)[0].ffn == 0
    assert part_drift([square_sums(loud, silent, [0], both)], 1)[0].ffn == float("inf")
    assert part_drift([square_sums(silent, loud, [0], both)], 1)[0].ffn == 1


def test_other_shapes_and_partners() -> None:
    """The student's one block is compared with the teacher's second; four heads are not two."""
    student: dict[Part, torch.Tensor] = {("heads", 0): torch.ones(1, 4, 2), ("ffn", 0): torch.ones(1, 1, 2)}
    teacher: dict[Part, torch.Tensor] = {
        ("heads", 1): torch.ones(1, 2, 4),
        ("ffn", 0): torch.zeros(1, 1, 2),
        ("ffn", 1): 2 * torch.ones(1, 1, 2),
    }
    drift = part_drift([square_sums(student, teacher, [1], torch.tensor([True]))], 1)
    assert drift == (PartDrift(attention=None, ffn=0.5, heads=()),)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_against_itself(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout])).model
    apart = layout != "gpt2"  # query, key and value are one layer there
    expected = PartDrift(attention=0.0 if apart else None, ffn=0.0, heads=(0.0,) * 4 if apart else ())
    assert drift_of(model, model) == (expected, expected)


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gemma3_text"])
def test_a_scaled_value_group_drifts_its_heads_alone(tiny_models: dict[str, Path], layout: str) -> None:
    """Head outputs are linear in the values: twice the values, twice the output, drift 1. With 2 groups of values for 4 query
    heads, group 1 serves heads 2 and 3; Gemma's one group serves all four."""
    teacher, student = (load(str(tiny_models[layout])).model for _ in range(2))
    attention = student.get_submodule("model.layers.1.self_attn")
    attention.v_proj.weight.data[-8:] *= 2
    if attention.v_proj.bias is not None:
        attention.v_proj.bias.data[-8:] *= 2
    first, last = drift_of(teacher, student)
    assert first == PartDrift(0.0, 0.0, (0.0,) * 4)
    assert last.heads == ((1.0,) * 4 if layout == "gemma3_text" else (0.0, 0.0, 1.0, 1.0))
    assert last.attention is not None
    assert last.ffn is not None
    assert last.ffn > 0  # it is handed what the attention put out


@pytest.mark.parametrize(("part", "field"), [("self_attn.o_proj", "attention"), ("mlp.down_proj", "ffn")])
def test_a_part_scaled_by_three_drifts_by_two(tiny_model: Path, part: str, field: str) -> None:
    teacher, student = (load(str(tiny_model)).model for _ in range(2))
    student.get_submodule(f"model.layers.1.{part}").weight.data *= 3
    first, last = drift_of(teacher, student)
    assert first == PartDrift(0.0, 0.0, (0.0,) * 4)
    assert getattr(last, field) == pytest.approx(2)
    assert last.heads == (0.0,) * 4


def test_a_model_without_heads_has_no_attention_drift(tiny_model: Path) -> None:
    """As a state-space model's config names none; its feed-forward parts are still looked at."""
    model = load(str(tiny_model)).model
    vars(model.config)["num_attention_heads"] = None  # past the config's own check
    assert drift_of(model, model) == (PartDrift(attention=None, ffn=0.0, heads=()),) * 2


def test_hooks_leave(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    drift_of(model, model)
    assert not any(module._forward_hooks for module in model.modules())


def test_pads_never_count(tiny_model: Path, tmp_path: Path) -> None:
    """The drift on padded rollouts is that of the same sequences run alone."""
    teacher, student = load(str(tiny_model)).model, load(str(save_tiny("llama", tmp_path, seed=1))).model
    sums = []
    for tokens, attention in zip(ROLLOUTS.tokens_BT, ROLLOUTS.attention_BT, strict=True):
        alone = pack([tokens[attention].tolist()], [[]], pad=258)
        own, others = (states_and_parts(model, alone)[1] for model in (student, teacher))
        sums.append(square_sums(own, others, partners=range(2), mask_N=alone.attention_BT.flatten()))
    for whole, single in zip(drift_of(teacher, student), part_drift(sums, 2), strict=True):
        assert whole.heads == pytest.approx(single.heads, rel=1e-5)
        assert (whole.attention, whole.ffn) == pytest.approx((single.attention, single.ffn), rel=1e-5)
