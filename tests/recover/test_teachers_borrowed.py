"""Teachers that speak through the student: by hand, against a frozen copy, and stopped and gone on."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from recoup.divergence import HiddenTargets
from recoup.models.capture import block_outputs, hidden_states
from recoup.models.hidden import completion_hidden
from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_logits
from recoup.models.sample import Rollouts, Sampling, pack, sample
from recoup.recover.teachers import load_state, state
from recoup.recover.teachers.base import Teacher
from recoup.recover.teachers.borrowed import lent
from recoup.recover.teachers.ema import Average
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.teachers.start import Start
from recoup.structure.guard import Guard
from recoup.structure.spec import Structure
from recoup.structure.trainable import LoRA
from tests.conftest import LAYOUTS, save_tiny

ROLLOUTS = pack([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad=0)


def names_of(model: LanguageModel) -> tuple[str, ...]:
    return tuple(name for name, _ in model.model.named_parameters())


def twin_of(model: LanguageModel, dtype: torch.dtype = torch.bfloat16) -> LanguageModel:
    """A compute copy: parameters in `dtype`, buffers as they are (`Module.to` would round rotary frequencies to bf16)."""
    twin = copy.deepcopy(model.model)
    for weight in twin.parameters():
        weight.data = weight.data.to(dtype)
    return replace(model, model=twin)


def logits_of(teacher: Teacher, rollouts: Rollouts = ROLLOUTS) -> Tensor:
    targets = teacher.score(rollouts)
    assert isinstance(targets, HiddenTargets)
    return targets.head.logits(targets.hidden_ND)


@torch.no_grad()
def train(model: LanguageModel, names: tuple[str, ...], seed: int = 1) -> None:
    """Move these parameters, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        weight = model.model.get_parameter(name)
        weight += 0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype)


@torch.no_grad()
def follow(twin: LanguageModel, student: LanguageModel) -> None:
    for mine, theirs in zip(twin.model.parameters(), student.model.parameters(), strict=True):
        mine.copy_(theirs)


# ---- the moving average ------------------------------------------------------------------------------------------------------


def test_average_by_hand(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    name = "model.norm.weight"
    weight = student.model.get_parameter(name)
    weight.data.fill_(1.0)
    teacher = Average(student, student, (name,), rate=0.25, every=2)
    for step, value in enumerate([3.0, 5.0, 9.0, 13.0]):
        weight.data.fill_(value)
        teacher.after_step(step)
    # steps 1 and 3 count: 0.75 · 1 + 0.25 · 5 = 2; 0.75 · 2 + 0.25 · 13 = 4.75
    assert torch.equal(teacher.state()[name], torch.full_like(weight, 4.75))
    with teacher.model() as speaker:
        assert torch.equal(speaker.model.get_parameter(name), torch.full_like(weight, 4.75))
    assert torch.equal(weight, torch.full_like(weight, 13.0))


def test_average_is_of_products_not_of_factors(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    name = "model.layers.0.mlp.up_proj.weight"
    student.model.get_parameter(name).data.zero_()
    guard = Guard(student.model, Structure(), {name: "lora"}, LoRA(rank=1, alpha_per_rank=1.0))
    a_RI, b_OR = guard.parameters()
    teacher = Average(student, student, (name,), rate=0.5, every=1)
    for step, factor in enumerate([2.0, 4.0]):
        a_RI.data.fill_(factor)
        b_OR.data.fill_(factor)
        guard.project()
        teacher.after_step(step)
    # products 0, 4, 16: 0.5 · 0 + 0.5 · 4 = 2, then 0.5 · 2 + 0.5 · 16 = 9
    assert torch.equal(teacher.state()[name], torch.full((48, 32), 9.0))
    # factors 0, 2, 4: 1, then 2.5, whose product would be 6.25
    assert 0.5 * (0.5 * 0 + 0.5 * 2) + 0.5 * 4 == 2.5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(rate=st.floats(0.01, 0.99), steps=st.integers(1, 5))
def test_average_of_a_still_student_is_the_student(tiny_model: Path, rate: float, steps: int) -> None:
    student = load(str(tiny_model))
    teacher = Average(student, student, names_of(student), rate, 1)
    for step in range(steps):
        teacher.after_step(step)
    for name, mean in teacher.state().items():
        assert torch.equal(mean, student.model.get_parameter(name))  # a + rate · (a − a) = a exactly


def test_average_in_bf16_keeps_what_bf16_would_lose(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    name = "model.norm.weight"
    student.model.get_parameter(name).data.fill_(1.0)
    twin = twin_of(student)
    teacher = Average(student, twin, (name,), rate=0.02, every=1)
    student.model.get_parameter(name).data.fill_(1.01)
    for step in range(100):
        teacher.after_step(step)
    # 1 + 0.01 (1 − 0.98^100) = 1.00867; one update moves 0.0002, and bf16 holds nothing between 1 and 1.0078
    torch.testing.assert_close(teacher.state()[name], torch.full((32,), 1 + 0.01 * (1 - 0.98**100)), atol=1e-6, rtol=0)
    with teacher.model() as speaker:
        assert torch.equal(speaker.model.get_parameter(name), torch.full((32,), 1.0078125).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_average_is_the_unstopped_one(tiny_model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def run(first: int, last: int, student: LanguageModel, twin: LanguageModel, teacher: Average) -> None:
        for step in range(first, last):
            train(student, names_of(student), seed=step)
            follow(twin, student)
            teacher.after_step(step)

    def made() -> tuple[LanguageModel, LanguageModel, Average]:
        student = load(str(tiny_model))
        twin = student if dtype == torch.float32 else twin_of(student)
        return student, twin, Average(student, twin, names_of(student), 0.3, 2)

    whole, halved = made(), made()
    run(0, 7, *whole)
    run(0, 3, *halved)
    save_file({**state([halved[2]]), **dict(halved[0].model.named_parameters())}, tmp_path / "state.safetensors")
    saved = load_file(tmp_path / "state.safetensors")
    resumed = made()
    load_state([resumed[2]], {key: value for key, value in saved.items() if ":" in key})
    for name, weight in resumed[0].model.named_parameters():
        weight.data.copy_(saved[name])
    run(3, 7, *resumed)
    for name, mean in whole[2].state().items():
        assert torch.equal(resumed[2].state()[name], mean)
    assert torch.equal(logits_of(resumed[2]), logits_of(whole[2]))


def test_average_costs_what_trains(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    # a norm of width 32: 4 bytes in fp32, and 2 more where the twin computes in bf16
    assert Average(student, student, ("model.norm.weight",), 0.1, 1).memory_bytes() == 32 * 4
    assert Average(student, twin_of(student), ("model.norm.weight",), 0.1, 1).memory_bytes() == 32 * (4 + 2)


# ---- the start -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_start_is_a_frozen_copy_bit_for_bit(tiny_models: dict[str, Path], layout: str, dtype: torch.dtype) -> None:
    student = load(str(tiny_models[layout]))
    frozen = Frozen(load(str(tiny_models[layout]), dtype=dtype), num_shared=8)
    twin = student if dtype == torch.float32 else twin_of(student)
    start = Start(twin, names_of(student))
    train(student, names_of(student))
    follow(twin, student)
    trained = {name: weight.clone() for name, weight in twin.model.state_dict().items()}
    assert torch.equal(logits_of(start), logits_of(frozen))
    assert not torch.equal(completion_logits(twin.model, ROLLOUTS), logits_of(frozen))
    for name, weight in twin.model.state_dict().items():
        assert torch.equal(weight, trained[name])


def test_start_holds_only_what_trains(tiny_model: Path) -> None:
    twin = twin_of(load(str(tiny_model)))
    norms = tuple(name for name in names_of(twin) if "norm" in name)
    teacher = Start(twin, norms)
    assert teacher.memory_bytes() == 5 * 32 * 2  # two norms in each of two blocks and the last one, width 32, bf16
    assert teacher.describe() == "teacher start: 0.0 MB beside the student"
    before = logits_of(teacher)
    train(twin, norms)
    assert torch.equal(logits_of(teacher), before)


def test_weights_come_back_after_an_error(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    start = Start(student, names_of(student))
    train(student, names_of(student))
    weights = dict(student.model.named_parameters())
    pointers = {name: weight.data_ptr() for name, weight in weights.items()}

    def fail() -> None:
        with start.model():
            assert all(weight.data_ptr() != pointers[name] for name, weight in weights.items())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert {name: weight.data_ptr() for name, weight in weights.items()} == pointers
    wrong = {
        "model.norm.weight": torch.zeros(32),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(3).bool().to_sparse(),
    }
    with pytest.raises(RuntimeError), lent(student.model, wrong):
        pass  # the second value cannot be laid in; the first is taken out again
    assert {name: weight.data_ptr() for name, weight in weights.items()} == pointers


def test_entered_again_from_inside(tiny_model: Path) -> None:
    """Block outputs and the score come from one forward pass of the start's own weights."""
    student = load(str(tiny_model))
    start = Start(student, names_of(student))
    expected = hidden_states(student.model, ROLLOUTS)[1]
    train(student, names_of(student))
    with start.model() as speaker, block_outputs(speaker.model) as outputs:
        start.score(ROLLOUTS)
        torch.testing.assert_close(outputs[1], expected[:, :-1])
    assert not torch.allclose(hidden_states(student.model, ROLLOUTS)[1], expected)


def test_a_student_in_training_mode_teaches_in_evaluation_mode(tmp_path: Path) -> None:
    student = load(str(save_tiny("gpt2", tmp_path, embd_pdrop=0.5, resid_pdrop=0.5)))
    start = Start(student, names_of(student))
    calm = logits_of(start)
    student.model.train()
    assert torch.equal(logits_of(start), calm)
    assert student.model.training
    assert all(module.training for module in student.model.modules())


def test_scores_take_no_gradient_and_give_none(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    student.model.requires_grad_(True)
    start = Start(student, names_of(student))
    targets = start.score(ROLLOUTS)
    assert isinstance(targets, HiddenTargets)
    assert not targets.hidden_ND.requires_grad
    assert not targets.head.weight_VD.requires_grad
    # a student's backward pass may save them, as it may not save tensors of inference mode
    hidden = completion_hidden(student.model, ROLLOUTS)
    (hidden * targets.hidden_ND).sum().backward()
    assert student.model.get_parameter("model.norm.weight").grad is not None


def test_a_step_goes_on_across_a_score(tiny_model: Path) -> None:
    """Weights laid in between forward and backward do not change the student's gradient."""

    def gradient(*, scored: bool) -> Tensor:
        student = load(str(tiny_model))
        student.model.requires_grad_(True)
        start = Start(student, names_of(student))
        train(student, names_of(student))
        loss = completion_hidden(student.model, ROLLOUTS).square().sum()
        if scored:
            start.score(ROLLOUTS)
        loss.backward()
        grad = student.model.get_parameter("model.layers.0.mlp.up_proj.weight").grad
        assert grad is not None
        return grad

    assert torch.equal(gradient(scored=True), gradient(scored=False))


def test_start_writes_as_it_was(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    start = Start(student, names_of(student))
    greedy = Sampling(max_tokens=6)
    expected = sample(student, [[1, 2, 3]], greedy).completions()
    train(student, names_of(student))
    with start.model() as writer:
        assert sample(writer, [[1, 2, 3]], greedy).completions() == expected
    assert sample(student, [[1, 2, 3]], greedy).completions() != expected
