"""The hidden-state term: values, invariances, gradients, and which states it looks at."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from recoup.cka import debiased_cka
from recoup.config import Recover
from recoup.errors import ConfigError
from recoup.models.capture import hidden_states
from recoup.models.hidden import completion_hidden
from recoup.models.layers import blocks, paired_blocks
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from recoup.recover.hidden_term import (
    chosen_layers,
    cka_loss,
    completion_states,
    hidden_term,
    relative_l2,
)
from recoup.recover.run import RecoverInputs, run
from tests.conftest import LAYOUTS, save_tiny

ROLLOUTS = pack([[5, 6, 7], [8]], [[9, 10, 11, 12], [13, 14]], pad=0)


def features(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(features(width, width, seed=9))[0]


def states_of(model: PreTrainedModel, layers: tuple[int, ...], rollouts: Rollouts = ROLLOUTS) -> dict[int, Tensor]:
    with completion_states(model, layers, rollouts) as states:
        completion_hidden(model, rollouts)
    return states


# --- values


def test_cka_by_the_definition() -> None:
    # METHOD: HSIC_1 ∝ tr(KL) + (1ᵀK1)(1ᵀL1)/((n−1)(n−2)) − 2/(n−2) 1ᵀKL1, Gram matrices with zeroed diagonals
    X_ND, Y_NE = features(7, 3), features(7, 5, seed=1)
    K, L = (F @ F.T - torch.diag((F @ F.T).diag()) for F in (X_ND, Y_NE))

    def hsic(A: Tensor, B: Tensor) -> Tensor:
        return (A @ B).trace() + A.sum() * B.sum() / (6 * 5) - 2 / 5 * (A @ B).sum()

    expected = 1 - hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()
    torch.testing.assert_close(cka_loss(X_ND, Y_NE), expected)


@pytest.mark.parametrize(("n", "width", "other"), [(40, 6, 9), (12, 30, 20), (12, 3, 50)])
def test_cka_is_the_diagnosis_own(n: int, width: int, other: int) -> None:
    X_ND, Y_NE = features(n, width), features(n, other, seed=1)
    assert float(cka_loss(X_ND, Y_NE)) == pytest.approx(1 - debiased_cka(X_ND, Y_NE), abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 30), st.integers(2, 20), st.floats(1e-3, 1e4))
def test_cka_ignores_rotation_scale_and_shift(n: int, width: int, scale: float) -> None:
    X_ND, Y_ND = features(n, width), features(n, width, seed=1)
    loss = cka_loss(X_ND, Y_ND)
    torch.testing.assert_close(cka_loss(scale * X_ND @ rotation(width) + 3, Y_ND), loss, atol=1e-7, rtol=1e-6)
    assert float(cka_loss(scale * X_ND @ rotation(width) + 3, X_ND)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("n", "width"), [(12, 4), (5, 9)])
def test_cka_gradcheck_and_no_gradient_at_equality(n: int, width: int) -> None:
    X_ND, Y_NE = features(n, width).requires_grad_(), features(n, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: cka_loss(x, Y_NE), X_ND)
    (gradient_ND,) = torch.autograd.grad(cka_loss(X_ND, X_ND.detach()), X_ND)
    assert gradient_ND.abs().max() < 1e-12


def test_a_gradient_step_brings_features_nearer() -> None:
    X_ND, Y_ND = features(64, 4).requires_grad_(), features(64, 4, seed=1)
    loss = cka_loss(X_ND, Y_ND)
    (gradient_ND,) = torch.autograd.grad(loss, X_ND)
    assert cka_loss(X_ND - 0.5 * gradient_ND, Y_ND) < loss


def test_unrelated_features_read_one_however_few_the_tokens() -> None:
    # 24 tokens of width 100: the biased estimator reads 0.81 alike here, the debiased one 0 within its noise
    losses = [float(cka_loss(features(24, 100, seed), features(24, 100, seed + 50))) for seed in range(20)]
    assert torch.tensor(losses).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_constant_features_give_no_gradient_and_no_nan(offset: float) -> None:
    X_ND = torch.full((40, 5), offset + 0.1).requires_grad_()
    loss = cka_loss(X_ND, features(40, 5).float())
    (gradient_ND,) = torch.autograd.grad(loss, X_ND)
    assert loss == 1
    assert not gradient_ND.any()


def test_bf16_and_large_features_are_compared_in_float32() -> None:
    X_ND, Y_ND = features(64, 8).float() * 1e12, features(64, 8, seed=1).bfloat16()
    assert cka_loss(X_ND, Y_ND).dtype == torch.float32
    assert float(cka_loss(X_ND, Y_ND)) == pytest.approx(1 - debiased_cka(X_ND.double(), Y_ND.double()), abs=1e-5)


def test_relative_l2_by_hand() -> None:
    # (1, 2) against (1, 0): 4 / 1; (3, 4) against (0, 5): (9 + 1) / 25
    student_ND, teacher_ND = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    torch.testing.assert_close(relative_l2(student_ND, teacher_ND), torch.tensor([4.0, 0.4]))
    x_ND = features(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relative_l2(x, features(3, 2, seed=1)), x_ND)
    with pytest.raises(ConfigError, match="needs equal widths, not 2 and 3; use measure: cka"):
        relative_l2(student_ND, torch.ones(2, 3))


# --- the term


def test_term_averages_layers_and_leaves_out_what_is_not_scored() -> None:
    weights_N = torch.cat([torch.zeros(8), torch.full((40,), 0.01)])  # sum 0.4
    student, teacher = [features(48, 4, s).float() for s in (0, 1)], [features(48, 6, s).float() for s in (2, 3)]
    expected = 0.4 * (cka_loss(student[0][8:], teacher[0][8:]) + cka_loss(student[1][8:], teacher[1][8:])) / 2
    torch.testing.assert_close(hidden_term("cka", student, teacher, weights_N), expected)
    # relative_l2 by hand, one layer, one token of weight 1/2: ‖(0, 1) − (1, 0)‖² / 1 = 2
    one = hidden_term("relative_l2", [torch.tensor([[0.0, 1.0]])], [torch.tensor([[1.0, 0.0]])], torch.tensor([0.5]))
    assert one == 1.0


def test_too_few_tokens_for_cka() -> None:
    few, enough = torch.full((31,), 0.1), torch.full((32,), 0.1)
    assert hidden_term("cka", [features(31, 3)], [features(31, 3)], few) is None
    assert hidden_term("cka", [features(32, 3)], [features(32, 3)], enough) is not None


def test_relative_l2_is_the_same_however_the_batch_is_cut() -> None:
    weights_N, student, teacher = torch.rand(10) / 10, [features(10, 3).float()], [features(10, 3, 1).float()]
    cuts = [slice(10), slice(3), slice(3, 10)]
    whole, *parts = [hidden_term("relative_l2", [student[0][c]], [teacher[0][c]], weights_N[c]) for c in cuts]
    assert whole is not None
    torch.testing.assert_close(torch.stack([part for part in parts if part is not None]).sum(), whole)


def test_teachers_of_inference_mode_are_constants() -> None:
    student_ND = features(40, 3).float().requires_grad_()
    with torch.inference_mode():
        teacher_ND = features(40, 3, seed=1).float()
    for measure in ("cka", "relative_l2"):
        loss = hidden_term(measure, [student_ND], [teacher_ND], torch.full((40,), 1 / 40))
        assert loss is not None
        (gradient_ND,) = torch.autograd.grad(loss, student_ND)
        assert gradient_ND.abs().sum() > 0


# --- which layers and states


def test_layers_by_default_are_every_fourth_and_the_last() -> None:
    assert chosen_layers(None, 12) == (3, 7, 11)
    assert chosen_layers(None, 30) == (3, 7, 11, 15, 19, 23, 27, 29)
    assert chosen_layers(None, 2) == (1,)
    assert chosen_layers((5, 0, 5), 6) == (0, 5)
    with pytest.raises(ConfigError, match="no block 6; the student has blocks 0 to 5"):
        chosen_layers((6,), 6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_are_those_that_predict_completion_tokens(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout])).model
    expected = hidden_states(model, ROLLOUTS)
    predicts_BT = ROLLOUTS.completion_BT.roll(-1, dims=1)  # rollouts end in completions or pads, so nothing wraps round
    with torch.no_grad():
        states = states_of(model, (0, 1))
    for index in (0, 1):
        torch.testing.assert_close(states[index], expected[index][predicts_BT])
    assert len(states[0]) == 6
    assert not any(block._forward_hooks for block in blocks(model))


def test_only_chosen_blocks_are_kept_and_gradients_reach_what_is_below(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["llama"])).model.requires_grad_(True)
    states = states_of(model, (0,))
    assert list(states) == [0]
    states[0].square().sum().backward()
    reached = [any(p.grad is not None for p in block.parameters()) for block in blocks(model)]
    assert reached == [True, False]


def test_gradients_are_the_same_under_gradient_checkpointing(tiny_models: dict[str, Path]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load(str(tiny_models["llama"])).model.requires_grad_(True)
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
        with completion_states(model, (0, 1), ROLLOUTS) as states:
            hidden_ND = completion_hidden(model, ROLLOUTS)
        (hidden_ND.square().sum() + sum(state.sin().sum() for state in states.values())).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_a_deeper_teacher_teaches_a_student_on_other_prompts(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    student = load(str(tiny_models["llama"])).model.requires_grad_(True)
    teacher = load(str(save_tiny("llama", tmp_path / "deep", seed=1, num_hidden_layers=4, hidden_size=48))).model
    rollouts = pack([[5, 6], [8]], [list(range(20, 40)), list(range(40, 60))], pad=0)
    longer = pack([[1, 2, 3, 4, 5], [1, 2]], rollouts.completions(), pad=0)
    own = chosen_layers((0, 1), 2)
    with torch.inference_mode():
        theirs = states_of(teacher, paired_blocks(2, 4), longer)
    states = states_of(student, own, rollouts)
    pairs = [states[index] for index in own], [theirs[index] for index in (1, 3)]
    loss = hidden_term("cka", *pairs, torch.full((40,), 1 / 40))
    assert loss is not None
    loss.backward()
    assert 0 < loss.item() < 2
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("measure", ["cka", "relative_l2"])
def test_a_term_without_a_teacher_has_no_hidden_states(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path, measure: str
) -> None:
    rows = [{"prompt": f"prompt number {i}", "completion": "a long enough answer " * 3} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    terms = [{"loss": "cross_entropy", "completions": "file", "prompts": str(tmp_path / "rows.jsonl")}]
    changes = {"terms": terms, "hidden_states": {"measure": measure}, "steps": 1, "rollout": {"max_tokens": 40}}
    config = Recover.model_validate(short.model_dump() | changes)
    run(config, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text())["hidden_loss"] is None


def test_a_balanced_term_stands_to_the_divergence_as_its_weight_says(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    found: dict[str, list[dict]] = {}
    for balance in ("fixed", "loss"):
        hidden = {"measure": "relative_l2", "weight": 0.3, "balance": balance}
        config = Recover.model_validate(short.model_dump() | {"hidden_states": hidden, "steps": 2})
        run(config, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path / balance)
        found[balance] = [json.loads(line) for line in (tmp_path / balance / "metrics.jsonl").read_text().splitlines()]
    fixed, balanced = found["fixed"], found["loss"]
    assert balanced[0]["hidden_loss"] == fixed[0]["hidden_loss"]  # nothing was measured before the first step
    # the second step: the same student, its term multiplied by what divergence over term was in the first
    divergence, term = fixed[0]["loss"] - fixed[0]["hidden_loss"], fixed[0]["hidden_loss"] / 0.3
    assert balanced[1]["hidden_loss"] == pytest.approx(fixed[1]["hidden_loss"] * divergence / term, rel=1e-5)
    assert balanced[1]["kl"] == fixed[1]["kl"]
