"""Repairs without training: each is scored in minutes, and can be the answer, the start of training, or its baseline.

    damaged = Damaged(teacher, student, rollouts)
    for name in FREE_REPAIRS:
        if why_not := applies(name, damaged): ...            # one line for the user
        for candidate in candidates(name, damaged, progress): ...   # a repaired copy; the student stays as it is
    keep(best, folder)

A repair is a module with `applies(damaged)` and `candidates(damaged, progress)` beside its maths, which knows tensors only. A
candidate is made when it is asked for, and has a model of its own: let go of one before asking for the next. What a candidate
is worth is for the caller to measure, on text that it was not fitted on. A candidate can be damaged goods itself:
`Damaged(teacher, candidate.model, rollouts)` repairs on from there.

Adding one: a file here, a line in `REPAIRS`, its name in `config.FreeRepair`, a test.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from recoup.config import FreeRepair
from recoup.progress import Progress
from recoup.repair import interpolate, norms, rounding, svd_repair
from recoup.repair.base import Candidate, Damaged, keep

__all__ = ["REPAIRS", "Candidate", "Damaged", "applies", "candidates", "keep"]


@dataclass(frozen=True)
class Repair:
    """A repair without training."""

    applies: Callable[[Damaged], str | None]
    candidates: Callable[[Damaged, Progress], Iterator[Candidate]]
    description: str  # one line for people


REPAIRS: dict[FreeRepair, Repair] = {
    "interpolate": Repair(
        interpolate.applies, interpolate.candidates, "Weights between the student's and its base's (WiSE-FT)."
    ),
    "svd_repair": Repair(
        svd_repair.applies, svd_repair.candidates, "Only the leading directions of what fine-tuning changed."
    ),
    "norms": Repair(norms.applies, norms.candidates, "Norms and biases fitted to the teacher's activations."),
    "rounding": Repair(
        rounding.applies, rounding.candidates, "The same format or sparsity, found by GPTQ or SparseGPT."
    ),
}


def applies(name: FreeRepair, damaged: Damaged) -> str | None:
    """Why the repair `name` cannot be tried, one line; null: it can."""
    return REPAIRS[name].applies(damaged)


def candidates(name: FreeRepair, damaged: Damaged, progress: Progress) -> Iterator[Candidate]:
    """Repaired copies of the student, made one at a time; the student and the teacher stay as they are.

    Args:
        name: a repair that `applies`.
        damaged: what is repaired.
        progress: told how far the making of each is.

    Raises:
        StructureError: the repair does not fit the architecture.
        DataError: the teacher writes no usable text to calibrate on.
    """
    return REPAIRS[name].candidates(damaged, progress)
