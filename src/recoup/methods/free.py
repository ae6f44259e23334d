"""Methods without training: the student as it is, or the best of a free repair's candidates (`repair`).

Which candidate is best is decided by what the run's own objective asks for, on prompts that it may train on: the mean over the
terms of `recover`, weighted as they are, of KL(the term's teacher ‖ candidate) on answers that this teacher writes greedily. Of
interpolation and singular values, candidates lie between the student and its base, so with the base alone as a teacher the one
nearest to the base wins, and the task that the student learnt is given up; with base and expert both, general ability is traded
against the task, as in the repair that trains. Of `rounding` there is one. The words `ema` and `start`, which are the student
before any training, stand for the student; demonstrations are left out. Benchmarks and held-out prompts are never looked at
here.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recoup.config import SELF_TEACHERS, FreeRepair, RunConfig, Term
from recoup.data.prompts import fitting, load_prompts
from recoup.errors import ConfigError
from recoup.evaluate.fidelity import TeacherValues, teacher_values, token_values
from recoup.methods.inputs import RepairInputs
from recoup.models.backends.native import copied
from recoup.models.load import LanguageModel, computing, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.progress import Progress
from recoup.repair import Candidate, Damaged, applies, candidates, keep
from recoup.results import RecoverResult
from recoup.run_folder import make_folder, result_path, settle, write_text
from recoup.structure.verify import verify
from recoup.training.memory import peak_memory_bytes

NUM_PROMPTS, NUM_TOKENS = 16, 32  # of each term: enough to order a handful of candidates that lie far apart
CALIBRATION_PROMPTS, CALIBRATION_TOKENS = 96, 64  # of all terms together; tokens of an answer


@dataclass(frozen=True)
class Goal:
    """One term: what its teacher says on its prompts, and how much that counts."""

    said: TeacherValues
    weight: float


@dataclass(frozen=True)
class Trial:
    """A candidate that was scored; its model is let go of before the next is made."""

    nats: float
    words: str
    structure: str


def unchanged(config: RunConfig, inputs: RepairInputs, folder: Path, _progress: Progress) -> RecoverResult:
    """The student where it lies; nothing is copied.

    Raises:
        SourceError: the student cannot be loaded.
        RunFolderError: the folder cannot be written.
    """
    make_folder(folder)
    student = load(inputs.student, chat_template=config.chat_template)
    found = {
        "note": "the damaged student as it is",
        "teachers": (),
        "checkpoint": inputs.student,
        "num_prompts": 0,
        "structure": student.structure.describe(),
        "structure_exact": verify(student.model, student.structure).exact,
        "seconds": 0.0,
        "peak_memory_bytes": 0,
    }
    return _finish(config, inputs, folder, found)


def chosen(config: RunConfig, inputs: RepairInputs, folder: Path, progress: Progress) -> RecoverResult:
    """The best candidate of the free repair that `config.method` names, saved as `checkpoint/`.

    Raises:
        ConfigError: the repair does not apply to this student.
        SourceError: a model cannot be loaded, or tokenizers differ.
        DataError: a term has no usable prompt.
        RunFolderError: the folder cannot be written.
    """
    assert config.method in ("interpolate", "svd_repair", "rounding"), config.method
    name: FreeRepair = config.method
    make_folder(folder)
    settle(folder / "checkpoint")
    names = inputs.teachers(config, config.recover.terms)
    base = inputs.states[config.before_last_injury]
    models = _loaded((inputs.student, base, *names), config)
    began = time.perf_counter()
    teachers = [models.get(teacher, models[inputs.student]) for teacher in names]
    goals = [_goal(config, term, by) for term, by in zip(config.recover.terms, teachers, strict=True)]
    text = _calibration(config, models[base]) if name == "rounding" else goals[0].said.rollouts  # the others read none
    damaged = Damaged(models[base], models[inputs.student], text)
    if reason := applies(name, damaged):
        raise ConfigError(f"method {name}: {reason}; choose another method")
    before = score(goals, damaged.student)
    best = _best(name, damaged, goals, folder / "checkpoint", progress)
    found = {
        "note": f"{best.words} (token KL to the terms' teachers {best.nats:.4g} nats, the damaged student's {before:.4g})",
        "teachers": names,
        "checkpoint": str(folder / "checkpoint"),
        "num_prompts": sum(len(goal.said.rollouts.tokens_BT) for goal in goals),
        "structure": best.structure,
        "structure_exact": True,  # `keep` saves nothing else
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return _finish(config, inputs, folder, found)


def score(goals: Sequence[Goal], model: LanguageModel) -> float:
    """Weighted mean over the goals of the token KL from each one's teacher to `model`, nats.

    Raises:
        SourceError: the tokenizers differ.
    """
    with computing(model):
        nats = [goal.weight * float(token_values(goal.said, model).kl_N.mean()) for goal in goals]
    return sum(nats) / sum(goal.weight for goal in goals)


def _best(name: FreeRepair, damaged: Damaged, goals: Sequence[Goal], folder: Path, progress: Progress) -> Trial:
    """The candidate of the lowest score, in `folder`; each that beats all before it takes its place there."""
    best: Trial | None = None
    for candidate in candidates(name, damaged, progress):
        nats = score(goals, candidate.model)
        if best is None or nats < best.nats:
            keep(candidate, folder)
            best = Trial(nats, _words(candidate), candidate.model.structure.describe())
    assert best is not None, f"{name} has candidates wherever it applies"
    return best


def _words(candidate: Candidate) -> str:
    settings = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in candidate.settings.items()
    )
    return f"{settings}: {candidate.note}"


def _loaded(names: Sequence[str], config: RunConfig) -> Mapping[str, LanguageModel]:
    """Each model once, in float32; the words for the student's own states are no models."""
    wanted = [name for name in dict.fromkeys(names) if name not in SELF_TEACHERS]
    return {name: load(name, chat_template=config.chat_template) for name in wanted}


def _goal(config: RunConfig, term: Term, teacher: LanguageModel) -> Goal:
    rollouts = _written(config, [term], NUM_PROMPTS, NUM_TOKENS, teacher)
    final = term.weight if term.final_weight is None else term.final_weight
    with computing(teacher):
        return Goal(teacher_values(teacher, rollouts), (term.weight + final) / 2)


def _calibration(config: RunConfig, teacher: LanguageModel) -> Rollouts:
    """Text of the kind that is trained on: what the teacher answers to the prompts of all terms."""
    terms = config.recover.terms
    return _written(config, terms, -(-CALIBRATION_PROMPTS // len(terms)), CALIBRATION_TOKENS, teacher)


def _written(config: RunConfig, terms: Sequence[Term], most: int, tokens: int, teacher: LanguageModel) -> Rollouts:
    """Greedy answers, of `tokens` at most, to `most` prompts of each term that may be trained on."""
    writer = replace(teacher, model=copied(teacher.model, torch.bfloat16))
    found = [
        prompt
        for term in terms
        for prompt in load_prompts(term.prompts, writer, min(most, term.num_prompts), config.seed, "train", term.group)
    ]
    prompts = fitting(found, config.recover.rollout.max_prompt_tokens)
    return sample(writer, [prompt.ids for prompt in prompts], Sampling(tokens))


def _finish(config: RunConfig, inputs: RepairInputs, folder: Path, found: Mapping[str, Any]) -> RecoverResult:
    """Write the result: what was found, and that nothing was trained."""
    result = RecoverResult(
        method=config.method,
        student=inputs.student,
        steps=0,
        num_tokens=0,
        on_policy_from_step=None,
        first_loss_nats=None,
        last_loss_nats=None,
        **found,
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))
    return result
