"""Several runs, and the benchmarks that they have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recoup.report.gather import Run
from recoup.results import TaskComparison, TaskItems


@dataclass(frozen=True)
class Compared:
    """A run on a page of several."""

    key: str  # what the page calls it: A, B, C
    run: Run
    page: str | None  # address of its own page; null where it has none

    @property
    def task_by_name(self) -> Mapping[str, TaskComparison]:
        """Benchmarks of its evaluation; none where it was not evaluated."""
        return {task.task: task for task in (self.run.evaluation.tasks if self.run.evaluation else ())}

    def items(self, task: str, state: str = "recovered") -> TaskItems | None:
        """A model's items of a benchmark, where they are there."""
        scores = self.run.scores.get(state)
        return next((items for items in (scores.tasks if scores else ()) if items.task == task), None)


@dataclass(frozen=True)
class Shared:
    """What the evaluated runs have in common, and what not."""

    runs: tuple[Compared, ...]  # that were evaluated
    tasks: tuple[str, ...]  # scored on the same items in all of them, by the same metric
    others: Mapping[str, str]  # any other benchmark → why it is not compared

    @property
    def of_first(self) -> list[TaskComparison]:
        """The shared benchmarks in the first of the runs."""
        return [self.runs[0].task_by_name[task] for task in self.tasks]


def shared_tasks(runs: Sequence[Compared]) -> Shared:
    """Benchmarks that can be compared over the runs that were evaluated, in the order of the first of them."""
    evaluated = tuple(one for one in runs if one.run.evaluation is not None)
    names = list(dict.fromkeys(name for one in evaluated for name in one.task_by_name))
    reasons = {name: _apart(name, evaluated) for name in names}
    return Shared(
        runs=evaluated,
        tasks=tuple(name for name, reason in reasons.items() if not reason),
        others={name: reason for name, reason in reasons.items() if reason},
    )


def _apart(name: str, runs: Sequence[Compared]) -> str:
    """Why a benchmark cannot be compared; empty where it can."""
    missing = [one.key for one in runs if name not in one.task_by_name]
    if missing:
        return f"not scored in {', '.join(missing)}"
    tasks = [one.task_by_name[name] for one in runs]
    if len({task.metric for task in tasks}) > 1:
        return "scored by different metrics"
    items = [one.items(name) or one.items(name, "reference") for one in runs]
    known = {found.item_ids for found in items if found is not None}
    if len(known) > 1 or len({task.num_items for task in tasks}) > 1:
        return "scored on different items (set the same evaluate.limit and evaluate.seed)"
    return ""
