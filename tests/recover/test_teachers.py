"""Checkpoints as teachers, and who teaches what."""

from pathlib import Path

import pytest
import torch

from recoup.config import Teachers, Term
from recoup.divergence import TopKTargets
from recoup.errors import SourceError
from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_logits
from recoup.models.sample import pack
from recoup.recover.demonstration import with_prompts
from recoup.recover.teachers import Pupil, after_step, distinct, load_teachers, state
from recoup.recover.teachers.base import Teacher, bytes_of, fingerprint
from recoup.recover.teachers.cached import Cached
from recoup.recover.teachers.frozen import Frozen
from tests.conftest import LAYOUTS, save_tiny
from tests.recover.test_teachers_borrowed import ROLLOUTS, logits_of, names_of


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_scores_are_the_checkpoints_logits(tiny_models: dict[str, Path], layout: str) -> None:
    checkpoint = load(str(tiny_models[layout]))
    teacher = Frozen(checkpoint, num_shared=8)
    torch.testing.assert_close(logits_of(teacher), completion_logits(checkpoint.model, ROLLOUTS), atol=1e-5, rtol=0)
    assert teacher.memory_bytes() >= bytes_of(checkpoint.model.parameters())


def test_frozen_memory_by_hand(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype=torch.bfloat16)
    # embeddings 259 · 32 (tied); per block q 32 · 32, k and v 16 · 32, o 32 · 32, three of 48 · 32, two norms; the last norm
    numbers = 259 * 32 + 2 * (32 * 32 * 3 + 3 * 48 * 32 + 2 * 32) + 32
    rotary = bytes_of(model.model.buffers())
    assert Frozen(model, 1).memory_bytes() == 2 * numbers + rotary


def test_a_demonstration_is_in_the_rollouts(tiny_model: Path) -> None:
    """Longer prompts before the same completions: scores in the order of the student's tokens."""
    teacher = Frozen(load(str(tiny_model)), num_shared=8)
    shown = with_prompts(ROLLOUTS, [[9, 9, 1, 2, 3], [8, 8, 8, 8, 8, 8, 4]])
    scores = logits_of(teacher, shown)
    one = logits_of(teacher, pack([[8, 8, 8, 8, 8, 8, 4]], [[7, 8, 9]], pad=0))
    torch.testing.assert_close(scores[2:], one, atol=1e-5, rtol=0)  # two tokens of the first rollout stand before
    assert len(scores) == len(logits_of(teacher))


def loaded(names: tuple[str, ...], student: LanguageModel, folder: Path, **changes: object) -> tuple[Teacher, ...]:
    completions = changes.pop("completions", "student")
    term = Term.model_validate({"prompts": "p.jsonl", "completions": completions})
    pupil = Pupil(student, student, names_of(student))
    return load_teachers([term] * len(names), names, Teachers.model_validate(changes), pupil, None, folder)


def test_a_name_that_stands_twice_is_loaded_once(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    student, path = load(str(tiny_models["llama"])), str(tiny_models["qwen2"])
    teachers = loaded((path, "ema", "start", path, "ema"), student, tmp_path, ema_rate=0.5)
    assert teachers[0] is teachers[3]
    assert teachers[1] is teachers[4]
    assert [t.name for t in distinct(teachers)] == [path, "ema", "start"]
    name = "model.norm.weight"
    student.model.get_parameter(name).data.fill_(3.0)
    after_step(teachers, 0)
    # begun at ones: 0.5 · 1 + 0.5 · 3 = 2, although the teacher stands in two terms
    assert torch.equal(state(teachers)[f"ema:{name}"], torch.full((32,), 2.0))


def test_only_fixed_completions_of_fixed_teachers_are_cached(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    student, path = load(str(tiny_models["llama"])), str(tiny_models["llama"])
    names = (path, "start", "ema")
    fixed = loaded(names, student, tmp_path, cache="top_k", top_k=4, completions="file")
    assert [isinstance(t, Cached) for t in fixed] == [True, True, False]
    assert isinstance(fixed[0].score(ROLLOUTS), TopKTargets)
    assert not any(isinstance(t, Cached) for t in loaded(names, student, tmp_path, cache="top_k"))
    assert not any(isinstance(t, Cached) for t in loaded(names, student, tmp_path, completions="file"))


def test_a_larger_head_is_shared_in_part(tiny_model: Path, tmp_path: Path) -> None:
    padded = save_tiny("llama", tmp_path / "padded", vocab_size=264)
    (teacher,) = loaded((str(padded),), load(str(tiny_model)), tmp_path)
    assert teacher.num_shared == 259
    assert teacher.head().weight_VD.shape == (264, 32)


def test_another_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    student = load(str(tiny_model))
    student.tokenizer.add_tokens(["<extra>"])
    other = load(str(tiny_model))
    other.tokenizer.add_tokens(["<other>"])
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="disagree"):
        loaded((str(tmp_path),), student, tmp_path)


def test_a_fingerprint_is_of_what_is_computed(tiny_model: Path, tmp_path: Path) -> None:
    model = load(str(tiny_model))
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    before = fingerprint(model.model)
    assert fingerprint(load(str(tmp_path)).model) == before  # another folder, the same teacher
    assert fingerprint(load(str(tiny_model), dtype=torch.bfloat16).model) != before
    model.model.get_parameter("model.norm.weight").data[7] += 1e-3
    assert fingerprint(model.model) != before
