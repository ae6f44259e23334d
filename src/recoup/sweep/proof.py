"""The records of a sweep's finished runs, and their scores as arrays.

Shapes: S seeds, K models (reference, degraded, recovered), I items of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recoup.errors import DataError
from recoup.evaluate.compare import REFERENCE
from recoup.evaluate.seeds import ScoresSKI
from recoup.results import DiagnoseResult, EvaluateResult, ModelScores, RecoverResult, TaskItems, TokenDamage
from recoup.run_folder import RunFolder, result_path
from recoup.sweep.expand import PlannedRun


def finished(folder: RunFolder) -> bool:
    """Whether a run has come to its end."""
    return result_path(folder.evaluate).is_file()


@dataclass(frozen=True)
class Proof:
    """One finished run; its records are read when they are asked for."""

    planned: PlannedRun
    folder: RunFolder
    baseline: RunFolder  # of the run without repair, which says what the reference and the damaged model score

    @cached_property
    def scores(self) -> tuple[dict[str, TaskItems], ...]:
        """Reference, degraded and recovered, by task.

        Raises:
            DataError: a record cannot be read, or the models were not scored on the same items.
        """
        own = self.folder.evaluate / "recovered"
        repaired = own if result_path(own).is_file() else self.baseline.evaluate / "degraded"  # nothing was repaired
        models = (self.baseline.evaluate / "reference", self.baseline.evaluate / "degraded", repaired)
        scores = tuple({task.task: task for task in ModelScores.read(result_path(model)).tasks} for model in models)
        if any(_items(model) != _items(scores[REFERENCE]) for model in scores):
            raise DataError(
                f"{self.folder.root}: not scored on the items of {self.baseline.root}; remove it and run the sweep again"
            )
        return scores

    @cached_property
    def fidelity(self) -> TokenDamage:
        """Of the repaired model to the reference."""
        proof = EvaluateResult.read(result_path(self.folder.evaluate))
        return proof.recovered_fidelity or proof.degraded_fidelity

    @cached_property
    def repair(self) -> RecoverResult:
        """What was done, and what it cost."""
        return RecoverResult.read(result_path(self.folder.recover))

    @cached_property
    def cka(self) -> float | None:
        """With the reference, mean over the blocks."""
        path = result_path(self.folder.diagnose("after"))
        layers = DiagnoseResult.read(path).layers if path.is_file() else ()
        return float(np.mean([layer.linear_cka for layer in layers])) if layers else None


@dataclass(frozen=True)
class Wanted:
    """A score of a task: its first, or one of its further ones by name."""

    task: str
    score: str | None = None


def stacked(proofs: Sequence[Proof], wanted: Sequence[Wanted]) -> list[ScoresSKI]:
    """Each of the wanted scores, seeds in the order of `proofs`.

    Raises:
        DataError: the seeds were not scored on the same items, or a task has no such score.
    """
    first = _items(proofs[0].scores[REFERENCE])
    for proof in proofs:
        if _items(proof.scores[REFERENCE]) != first:
            raise DataError(
                f"{proof.folder.root}: not scored on the items of {proofs[0].folder.root}, which differs by its seed alone; "
                "items are drawn by evaluate.seed: remove both and run the sweep again"
            )
    return [
        np.array([[_chosen(model[one.task], one.score) for model in proof.scores] for proof in proofs], dtype=float)
        for one in wanted
    ]


def _chosen(items: TaskItems, score: str | None) -> tuple[float, ...]:
    known = {items.metric: items.scores, **items.further}
    if score is None:
        return items.scores
    if score not in known:
        raise DataError(f"task_score: {items.task} has no score {score!r}; choose from {', '.join(known)}")
    return known[score]


def _items(model: dict[str, TaskItems]) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (task.metric, task.item_ids) for name, task in model.items()}
