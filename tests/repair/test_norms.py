"""Norms and biases: a gain that was moved by hand comes back, and what else was damaged is made up for in part."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recoup.config import Depth, FFNWidth, Magnitude, Quantize
from recoup.degrade import METHODS, Context
from recoup.models.load import load
from recoup.progress import silent
from recoup.repair import Candidate, Damaged, applies, candidates, keep
from recoup.repair.base import weights
from recoup.repair.norm_parts import norms, offset_of, watch
from recoup.repair.norms import factors, shift
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS, save_tiny
from tests.repair.conftest import HELD, injured, kl, pair, text


def tried(damaged: Damaged) -> Candidate:
    assert applies("norms", damaged) is None
    (candidate,) = candidates("norms", damaged, silent)
    return candidate


def test_factors_by_hand() -> None:
    # W_S = W_T = 1; y = (1, 1) and (1, −1), y' = (3 y_1, y_2 / 2): Σ y yᵀ = diag(2, 2), Σ y y'ᵀ = diag(6, 1)
    # (2 + 0.02) (c − 1) = (6 − 2, 1 − 2), the ridge being a hundredth of 2: c = (1 + 4 / 2.02, 1 − 1 / 2.02)
    student = torch.tensor([[1.0, 1], [1, -1]])
    found = factors([(torch.eye(2), torch.eye(2))], student, student * torch.tensor([3, 0.5]))
    assert found.tolist() == pytest.approx([1 + 4 / 2.02, 1 - 1 / 2.02])
    # what reads y doubles it in the student alone, W_S = 2: 4 · 2 (1 + 1/100) (c − 1) = (2 · 6 − 8, 2 · 1 − 8)
    found = factors([(2 * torch.eye(2), torch.eye(2))], student, student * torch.tensor([3, 0.5]))
    assert found.tolist() == pytest.approx([1 + 4 / 8.08, 1 - 6 / 8.08])


def test_shift_by_hand() -> None:
    # W_S = W_T = diag(1, 2): y + t = y', so t = (4 − 1, 0 − 2), but for the ridge of a hundredth
    weight = torch.diag(torch.tensor([1.0, 2]))
    found = shift([(weight, weight)], torch.tensor([1.0, 2]), torch.tensor([4.0, 0]))
    assert found.tolist() == pytest.approx([3 / 1.01, -2 / 1.01])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), outputs=st.integers(1, 8))
def test_factors_lower_the_error_and_a_silent_channel_stays(seed: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(30, 5, generator=generator) for _ in range(2))
    student[:, 2] = 0
    reads, would_read = (torch.randn(outputs, 5, generator=generator) for _ in range(2))
    found = factors([(reads, would_read)], student, teacher)
    assert found[2] == 1

    def error(factor_D: torch.Tensor) -> float:
        return float(((student * factor_D) @ reads.T.double() - (teacher @ would_read.T)).square().sum())

    assert error(found) <= error(torch.ones(5, dtype=torch.float64)) * (1 + 1e-9)


def test_what_is_a_norm(tiny_models: dict[str, Path]) -> None:
    assert offset_of(nn.LayerNorm(4)) == 0
    assert offset_of(nn.RMSNorm(4)) == 0
    assert offset_of(nn.Linear(4, 4)) is None
    assert offset_of(nn.PReLU(4)) is None
    kinds = {
        layout: {norm.offset for norm in norms(load(str(tiny_models[layout])).model).values()} for layout in LAYOUTS
    }
    assert kinds == {"llama": {0}, "qwen2": {0}, "gemma3_text": {1}, "gpt2": {0}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rescaled_norms_put_out_what_was_asked_for(tiny_models: dict[str, Path], layout: str) -> None:
    for norm in norms(load(str(tiny_models[layout])).model).values():
        width = len(norm.module.get_parameter("weight"))
        x, scale = torch.randn(3, width), torch.rand(width) + 0.5
        shift_D = torch.randn(width) if getattr(norm.module, "bias", None) is not None else torch.zeros(width)
        before = norm.module(x)
        norm.rescale(scale, shift_D)
        assert torch.allclose(norm.module(x), before * scale + shift_D, atol=1e-5)


def test_who_reads_a_norm(tiny_models: dict[str, Path]) -> None:
    seen = watch(load(str(tiny_models["qwen2"])).model, text())
    block = "model.layers.1"
    assert seen.readers[f"{block}.input_layernorm"] == [f"{block}.self_attn.{name}_proj" for name in "qkv"]
    assert seen.readers[f"{block}.post_attention_layernorm"] == [f"{block}.mlp.{name}_proj" for name in ("gate", "up")]
    assert seen.readers["model.norm"] == ["lm_head"]
    assert sorted(name.rpartition(".")[2] for name in seen.means_I) == 2 * ["k_proj"] + 2 * ["q_proj"] + 2 * ["v_proj"]
    assert len(seen.inputs_ND["model.norm"]) == int(text().attention_BT.sum())
    seen = watch(load(str(tiny_models["gpt2"])).model, text())
    assert seen.readers["transformer.h.0.ln_2"] == ["transformer.h.0.mlp.c_fc"]
    assert seen.readers["transformer.ln_f"] == ["lm_head"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gains_and_biases_moved_by_hand_come_back(tiny_models: dict[str, Path], layout: str) -> None:
    damaged = pair(tiny_models[layout], HELD)
    generator = torch.Generator().manual_seed(0)
    readers = watch(damaged.teacher.model, damaged.rollouts).readers  # gemma3 has norms that no linear layer reads
    for name, norm in norms(damaged.student.model).items():
        if name in readers:
            width = len(norm.module.get_parameter("weight"))
            norm.rescale(0.5 + torch.rand(width, generator=generator), torch.zeros(width))
    for name, weight in weights(damaged.student).items():
        if name.endswith(".bias"):
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    held_out = text(seed=1)
    before, after = (kl(damaged.teacher, model, held_out) for model in (damaged.student, tried(damaged).model))
    assert before > 0.05
    assert after < 1e-3 * before


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gpt2"])
def test_rounding_is_made_up_for_in_part_and_the_grid_holds(
    tiny_models: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    damaged = injured(tiny_models[layout], Quantize(bits=3, group_size=16))
    candidate = tried(damaged)
    held_out = text(seed=1)
    assert kl(damaged.teacher, candidate.model, held_out) < kl(damaged.teacher, damaged.student, held_out)
    moved = {
        name
        for name, weight in weights(candidate.model).items()
        if not torch.equal(weight, weights(damaged.student)[name])
    }
    assert moved
    assert all(weights(damaged.student)[name].dim() == 1 for name in moved)
    assert candidate.model.structure == damaged.student.structure
    kept = load(str(keep(candidate, tmp_path / "kept")))
    assert verify(kept.model, kept.structure).exact


def test_scales_that_awq_folded_into_norms_stay(tiny_model: Path, text_file: Path) -> None:
    config = Quantize(bits=8, group_size=16, start="awq", calibration=str(text_file), calibration_tokens=400)
    damaged = injured(tiny_model, config)
    folded = weights(damaged.student)["model.layers.0.input_layernorm.weight"]
    assert (folded - 1).abs().max() > 0.1, "the teacher's are 1"
    held_out = text(seed=1)
    after = kl(damaged.teacher, tried(damaged).model, held_out)
    assert after < 2 * kl(damaged.teacher, damaged.student, held_out), "8 bits: next to nothing was lost"


def test_a_mask_is_made_up_for_in_part(tiny_model: Path) -> None:
    damaged = injured(tiny_model, Magnitude(sparsity=0.4))
    held_out = text(seed=1)
    candidate = tried(damaged)
    assert kl(damaged.teacher, candidate.model, held_out) < kl(damaged.teacher, damaged.student, held_out)
    assert "5 norms and 0 biases" in str(candidate.note)  # two a block and the last
    assert verify(candidate.model.model, candidate.model.structure).exact


def test_a_shallower_and_narrower_student_is_fitted_where_it_can_be(tmp_path: Path, text_file: Path) -> None:
    """Of three blocks one goes, then a quarter of the neurons, then a third of the weights: norms before attention are left."""
    calibration = {"calibration": str(text_file), "calibration_tokens": 200}
    teacher, student = (load(str(save_tiny("llama", tmp_path / "model", num_hidden_layers=3))) for _ in range(2))
    structure = student.structure
    for config in (Depth(num_blocks=1, **calibration), FFNWidth(fraction=0.25, **calibration), Magnitude(sparsity=0.3)):
        context = Context(0, silent, lambda line: None)
        structure = METHODS[config.type].apply(student, structure, config, context)
    damaged = Damaged(teacher, replace(student, structure=structure), text())
    candidate = tried(damaged)
    assert "3 norms and 0 biases" in str(candidate.note)  # one a block and the last
    assert verify(candidate.model.model, structure).exact
    moved = {name for name, w in weights(candidate.model).items() if not torch.equal(w, weights(damaged.student)[name])}
    assert {name.split(".")[-2] for name in moved} <= {"input_layernorm", "norm"}
    assert len(moved) >= 2


def test_where_it_does_not_apply(tiny_model: Path, tmp_path: Path) -> None:
    damaged = pair(tiny_model)
    assert "on a grid or under a mask" in str(applies("norms", damaged))
    marked = replace(damaged.student, structure=HELD)
    narrower = load(str(save_tiny("llama", tmp_path / "narrower", hidden_size=16)))
    assert "another width" in str(applies("norms", Damaged(narrower, marked, text())))
    shallower = load(str(save_tiny("llama", tmp_path / "shallower", num_hidden_layers=1)))
    assert "more blocks" in str(applies("norms", Damaged(shallower, marked, text())))
