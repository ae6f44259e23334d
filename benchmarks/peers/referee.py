"""Who is closer to the teacher: held-out token KL, top-1 agreement, and whether weights are still on the student's structure.

Shapes: P held-out prompts, one answer of the teacher to each; S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import recoup
from recoup.evaluate.fidelity import TeacherValues, token_values
from recoup.evaluate.seeds import draws_over_seeds, paired_difference
from recoup.evaluate.statistics import estimate
from recoup.models.load import LanguageModel, load
from recoup.results import Estimate
from recoup.structure.spec import Structure
from recoup.structure.verify import verify

NUM_BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Score:
    """By held-out prompt, weighted by its tokens so that the mean over prompts is the mean over tokens."""

    kl_P: np.ndarray  # KL(teacher ‖ student), nats
    top1_P: np.ndarray  # tokens on which both find the same one likeliest


@dataclass(frozen=True)
class Outcome:
    """A repaired model."""

    score: Score
    num_off: int  # weight matrices that left the structure
    num_constrained: int  # weight matrices that had to keep it
    rounded: Score  # once those are back on it, if only by rounding


@dataclass(frozen=True)
class Referee:
    """Judges every model by one piece of code."""

    teacher: TeacherValues
    structure: Structure  # of the damaged student
    quantize: Mapping[str, Any]  # settings of `degrade`'s quantize that made it; empty where nothing did

    def score(self, student: LanguageModel) -> Score:
        """One forward pass over the teacher's answers."""
        values = token_values(self.teacher, student)
        share = 1 / values.counts_P.double().mean()
        kl_P, top1_P = values.sums(values.kl_N), values.sums(values.agrees_N.double())
        return Score((kl_P * share).numpy(), (top1_P * share).numpy())

    def judge(self, checkpoint: str, folder: Path) -> Outcome:
        """Score a checkpoint as it is and, where it left the structure, quantized again into `folder`."""
        student = load(checkpoint)
        off = left_structure(student, self.structure)
        score = rounded = self.score(student)
        if off:
            again = recoup.degrade(model=checkpoint, method="quantize", output=folder, **self.quantize)
            rounded = self.score(load(again.checkpoint))
        return Outcome(score, len(off), len(self.structure.constraints), rounded)


def left_structure(student: LanguageModel, damaged: Structure) -> tuple[str, ...]:
    """Names of weights that are on no structure of the damaged student's kind.

    A student that declares these grids is held to its own. One whose trainer knew of none is held to the damaged student's with
    scales fitted anew, so that training may have moved a whole group's.
    """
    own, fitted = student.structure.constraints, {}
    for name, kept in damaged.constraints.items():
        declares_it = name in own and own[name].grid == kept.grid  # masks may have been inferred from zeros
        fitted[name] = own[name] if declares_it else kept.fitted(student.model.get_parameter(name))
    return verify(student.model, Structure(fitted)).violations


def mean(scores: Sequence[np.ndarray]) -> Estimate:
    """Mean over prompts and seeds, with its interval over prompts and, of several, seeds."""
    scores_SP = np.stack(scores)
    return estimate(float(scores_SP.mean()), draws_over_seeds(scores_SP[:, None], NUM_BOOTSTRAP, seed=0)[:, 0])


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Estimate:
    """First minus second, paired by prompt and seed."""
    return paired_difference(np.stack(first), np.stack(second), NUM_BOOTSTRAP, seed=0)[0]
