"""A look's figures: those of a diagnosis on the same prompts, and a student that is left as it was."""

from pathlib import Path

import pytest
import torch

from recoup.diagnose.damage import layer_damage
from recoup.evaluate.fidelity import token_damage
from recoup.models.layers import blocks
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.recover.teachers.ema import Average
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.yardstick import look, take
from tests.conftest import LAYOUTS, VOCAB, save_tiny


def answered(model: LanguageModel) -> Rollouts:
    prompts = [model.tokenizer(f"what comes after number {10**i}?").input_ids for i in range(10)]  # more than one pass
    return sample(model, prompts, Sampling(12, temperature=1.0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_teacher_itself_is_where_it_is(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    seen = look(model.model, take(Frozen(model, VOCAB), answered(model)))
    assert seen.token_kl == pytest.approx(0, abs=1e-6)
    assert torch.equal(seen.agrees_P, seen.counts_P)
    assert seen.linear_cka == pytest.approx((1.0, 1.0), abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_figures_are_those_of_a_diagnosis(tiny_models: dict[str, Path], layout: str, tmp_path: Path) -> None:
    teacher = load(str(tiny_models[layout]))
    student = load(str(save_tiny(layout, tmp_path, seed=1)))
    rollouts = answered(teacher)
    seen = look(student.model, take(Frozen(teacher, VOCAB), rollouts))
    words = token_damage(teacher, student, rollouts, num_bootstrap=10, seed=0)
    assert seen.token_kl == pytest.approx(words.token_kl_nats.value, rel=1e-5)
    assert float(seen.agrees_P.sum() / seen.counts_P.sum()) == pytest.approx(words.top1_agreement.value)
    assert seen.counts_P.tolist() == rollouts.completion_BT.sum(1).tolist()
    layers = layer_damage(teacher, student, rollouts, seed=0, num_bootstrap=0).layers
    assert seen.linear_cka == pytest.approx([layer.linear_cka for layer in layers], abs=1e-5)


@pytest.mark.parametrize("moved", ["teacher", "student"])
def test_a_sink_of_either_model_is_left_out(tiny_model: Path, tmp_path: Path, moved: str) -> None:
    """One model puts every letter h far out: as in a diagnosis, CKA is taken over the other tokens."""
    models = {"teacher": load(str(tiny_model)), "student": load(str(save_tiny("llama", tmp_path, seed=1)))}
    letter = models[moved].tokenizer("h").input_ids[-1]
    models[moved].model.get_input_embeddings().weight.data[letter] *= 10_000
    rollouts = answered(models["teacher"])
    seen = look(models["student"].model, take(Frozen(models["teacher"], VOCAB), rollouts))
    found = layer_damage(models["teacher"], models["student"], rollouts, seed=0, num_bootstrap=0)
    assert found.num_moved_sinks == int((rollouts.tokens_BT == letter).sum()) > 0
    assert seen.linear_cka == pytest.approx([layer.linear_cka for layer in found.layers], abs=1e-5)


def test_a_deeper_wider_teacher_with_a_padded_head(tiny_model: Path, tmp_path: Path) -> None:
    deep = save_tiny("llama", tmp_path, seed=1, num_hidden_layers=4, hidden_size=48, vocab_size=VOCAB + 5)
    teacher, student = load(str(deep)), load(str(tiny_model))
    rollouts = answered(student)
    seen = look(student.model, take(Frozen(teacher, VOCAB), rollouts))
    layers = layer_damage(teacher, student, rollouts, seed=0, num_bootstrap=0).layers
    assert seen.linear_cka == pytest.approx([layer.linear_cka for layer in layers], abs=1e-5)
    words = token_damage(teacher, student, rollouts, num_bootstrap=10, seed=0)
    assert seen.token_kl == pytest.approx(words.token_kl_nats.value, rel=1e-5)


def test_the_student_is_left_as_it_was(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    by = take(Frozen(load(str(tiny_model)), VOCAB), answered(student))
    before = {name: weight.clone() for name, weight in student.model.named_parameters()}
    model = student.model.requires_grad_(True).train()
    look(model, by)
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(block._forward_hooks for block in blocks(model))
    # and a step after it works: nothing of the look is left in the graph, nor made in inference mode
    model(by.parts[0].rollouts.tokens_BT).logits.sum().backward()


def test_a_teacher_that_moves_is_kept_as_it_spoke(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    names = tuple(name for name, _ in student.model.named_parameters())
    teacher = Average(student, student, names, rate=0.5, every=1)
    by = take(teacher, answered(student))
    start = look(student.model, by)
    assert start.token_kl == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in student.model.parameters():
            weight.mul_(1.1)
    moved = look(student.model, by)
    teacher.after_step(0)
    assert look(student.model, by).token_kl == moved.token_kl > 1e-3
