"""Better compression: the student's very format, from the teacher's weights, nearer to the teacher than rounding was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recoup.config import Magnitude, Quantize
from recoup.data.prompts import load_prompts
from recoup.degrade import METHODS, Context
from recoup.degrade.magnitude import masked
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.progress import silent
from recoup.repair import Candidate, Damaged, applies, candidates, keep, rounding
from recoup.repair.base import weights
from recoup.repair.rounding import anew
from recoup.structure.grids import IntegerGrid
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS
from tests.repair.conftest import injured, kl, pair, text

INT3 = Quantize(bits=3, group_size=16)


@pytest.fixture(autouse=True)
def _no_more_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ENOUGH_TOKENS", 0)


def tried(damaged: Damaged) -> list[Candidate]:
    assert applies("rounding", damaged) is None
    return list(candidates("rounding", damaged, silent))


def test_a_grid_by_hand() -> None:
    # codes −1, 0, 1 of scale 1 (the largest weight, which counts too much to be clipped). H = [[1, 0.5], [0.5, 1]] and its damping,
    # 1% of the mean diagonal 34, gives H⁻¹ ∝ [[1.34, −0.5], [−0.5, 1.34]]: rounding 0.4 down to 0 passes on −(0.4) · (−0.5 / 1.34)
    # = +0.149 to the weight after it, which is 0.549 and rounds up to 1, where to nearest both become 0
    weight = torch.tensor([[0.4, 0.4, 1.0]])
    hessian = torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 100]])
    before = Constraint(IntegerGrid(2, None, symmetric=True))
    rounded, after = anew(weight, before, hessian)
    assert rounded.tolist() == [[0, 1, 1]]
    assert after.grid == before.grid
    assert not after.refit


def test_a_mask_keeps_its_number_of_zeros_and_its_pattern() -> None:
    weight, hessian = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[0, :5] = mask[3, 2] = False  # 6 zeros, 5 of them in one row
    _, after = anew(weight, Constraint(mask_OI=mask), hessian)
    assert after.mask_OI is not None
    assert int((~after.mask_OI).sum()) == 6
    half = torch.tensor([True, True, False, False] * 2).expand(6, 8)
    _, after = anew(weight, masked(Constraint(), half, "2:4"), hessian)
    assert after.mask_OI is not None
    assert (after.mask_OI.view(6, 2, 4).sum(-1) == 2).all()
    assert after.pattern == "2:4"


def test_a_free_weight_stays() -> None:
    weight = torch.randn(3, 4)
    same, after = anew(weight, Constraint(), torch.eye(4))
    assert torch.equal(same, weight)
    assert after == Constraint()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_format_and_nearer_to_the_teacher(tiny_models: dict[str, Path], layout: str, tmp_path: Path) -> None:
    damaged = injured(tiny_models[layout], INT3)
    (candidate,) = tried(damaged)
    assert candidate.settings["method"] == "gptq"
    after, before = candidate.model.structure.constraints, damaged.student.structure.constraints
    assert {name: c.grid for name, c in after.items()} == {name: c.grid for name, c in before.items()}
    held_out = text(seed=1)
    assert kl(damaged.teacher, candidate.model, held_out) < kl(damaged.teacher, damaged.student, held_out)
    kept = load(str(keep(candidate, tmp_path / "kept")))
    assert verify(kept.model, kept.structure).exact
    assert kept.structure.describe() == damaged.student.structure.describe()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_as_sparse_and_nearer_to_the_teacher(tiny_model: Path, pattern: str) -> None:
    damaged = injured(tiny_model, Magnitude(pattern=pattern, sparsity=0.5))
    (candidate,) = tried(damaged)
    assert candidate.settings["method"] == "sparsegpt"
    checked = verify(candidate.model.model, candidate.model.structure)
    assert checked.exact
    assert checked.sparsity == verify(damaged.student.model, damaged.student.structure).sparsity
    assert {c.pattern for c in candidate.model.structure.constraints.values()} == {
        None if pattern == "unstructured" else pattern
    }
    held_out = text(seed=1)
    assert kl(damaged.teacher, candidate.model, held_out) < kl(damaged.teacher, damaged.student, held_out)


def test_what_the_student_left_free_is_the_teachers_and_its_embeddings_stay_on_their_grid(tiny_model: Path) -> None:
    damaged = injured(tiny_model, Quantize(bits=3, group_size=16, embeddings=True))
    free = "model.layers.0.mlp.up_proj.weight"
    constraints = {name: c for name, c in damaged.student.structure.constraints.items() if name != free}
    weights(damaged.student)[free].copy_(weights(damaged.teacher)[free])
    damaged = replace(damaged, student=replace(damaged.student, structure=Structure(constraints)))
    (candidate,) = tried(damaged)
    after = weights(candidate.model)
    assert candidate.model.structure.constraints.keys() == constraints.keys()
    assert torch.equal(after[free], weights(damaged.teacher)[free])
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(after[embeddings], weights(damaged.student)[embeddings])
    assert not torch.equal(after[embeddings], weights(damaged.teacher)[embeddings])
    assert verify(candidate.model.model, candidate.model.structure).exact


def test_a_grid_and_a_mask_together_both_hold(tiny_model: Path) -> None:
    pruned = injured(tiny_model, Magnitude(sparsity=0.3))
    constraints = {
        name: replace(c, grid=IntegerGrid(3, 16, symmetric=True)).fitted(weights(pruned.student)[name])
        for name, c in pruned.student.structure.constraints.items()
    }
    for name, constraint in constraints.items():
        weights(pruned.student)[name].copy_(constraint.project(weights(pruned.student)[name]))
    damaged = replace(pruned, student=replace(pruned.student, structure=Structure(constraints)))
    (candidate,) = tried(damaged)
    assert verify(candidate.model.model, candidate.model.structure).exact
    for name, constraint in candidate.model.structure.constraints.items():
        mask_OI, before_OI = constraint.mask_OI, constraints[name].mask_OI
        assert mask_OI is not None
        assert before_OI is not None
        assert torch.equal(mask_OI, before_OI)


def test_where_it_does_not_apply(tiny_model: Path) -> None:
    assert "on a grid or under a mask" in str(applies("rounding", pair(tiny_model)))
    trained = injured(tiny_model, INT3)
    weights(trained.student)["model.embed_tokens.weight"].mul_(1.01)
    assert "model.embed_tokens.weight is not the teacher's" in str(applies("rounding", trained))


def test_more_text_is_written_where_there_is_too_little(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = injured(tiny_model, INT3)
    there = int(damaged.rollouts.attention_BT.sum())
    asked: list[int] = []

    def written(_source: str, _model: object, tokens: int, _seed: int) -> list[object]:
        asked.append(tokens)
        return [text(seed=3, rows=2)]

    monkeypatch.setattr(rounding, "calibration_rollouts", written)
    monkeypatch.setattr(rounding, "ENOUGH_TOKENS", there + 1)
    monkeypatch.setattr(rounding, "CALIBRATION_TOKENS", there + 7)
    (first,) = candidates("rounding", damaged, silent)
    assert asked == [7]
    assert first.settings["calibration_tokens"] == there + int(text(seed=3, rows=2).attention_BT.sum())


@pytest.mark.slow
def test_int3_of_the_embedded_model() -> None:
    """Rounded to nearest in groups of 64 its token KL is near 3 nats; GPTQ about halves it."""
    teacher, student = load("embedded"), load("embedded")
    after = METHODS["quantize"].apply(student, Structure(), Quantize(bits=3), Context(0, silent, lambda line: None))
    prompts = [prompt.ids for prompt in load_prompts("self", teacher, 40, seed=0)]
    fitted_on = sample(teacher, prompts[8:], Sampling(64))
    held_out = sample(teacher, prompts[:8], Sampling(32))
    damaged = Damaged(teacher, replace(student, structure=after), fitted_on)
    (first,) = candidates("rounding", damaged, silent)
    assert kl(teacher, first.model, held_out) < 0.7 * kl(teacher, student, held_out)
