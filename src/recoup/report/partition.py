"""What became of each item, and of each task: healed, preserved, newly damaged, task kept, and the parts between.

Items have parts where a score is 0 or 1; a probability or a log-likelihood has no line between right and wrong that would
not be ours, so such tasks are left out by name. Right (1) or wrong (0) by the reference, the degraded and the recovered:

| reference → degraded → recovered | part of the items |
|---|---|
| right → right → right | preserved |
| right → wrong → right | healed |
| right → wrong → wrong | not healed |
| right → right → wrong | newly damaged |
| wrong → right → right | task kept |
| wrong → right → wrong | task lost |
| wrong → wrong → right | newly right |
| wrong → wrong → wrong | never right |

"Task" is what the damaging step taught: an item that only it brought. Degraded to recovered, mean score rises by (healed +
newly right − newly damaged − task lost) / items, so the parts add up to `TaskComparison.gain`.

A part is a count of what happened, not a proof: an item that sits on the edge flips to wrong and back by chance, and fills
"healed" and "newly damaged" alike. Whether a task healed is for the tests of `recoup.evaluate.compare`, whose verdicts the
partition of tasks uses. Their words differ from the parts in two: a task that was neither harmed nor raised is "preserved"
here and "unharmed" there, and a gain that the repair kept is "task kept" here and "preserved" there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recoup.errors import DataError
from recoup.results import Estimate, TaskComparison, TaskItems

ItemPart = Literal[
    "preserved", "healed", "not healed", "newly damaged", "task kept", "task lost", "newly right", "never right"
]
TaskPart = Literal["preserved", "healed", "partly healed", "not healed", "newly damaged", "task kept"]
TRANSITIONS: dict[tuple[bool, bool, bool], ItemPart] = {
    (True, True, True): "preserved",
    (True, False, True): "healed",
    (True, False, False): "not healed",
    (True, True, False): "newly damaged",
    (False, True, True): "task kept",
    (False, True, False): "task lost",
    (False, False, True): "newly right",
    (False, False, False): "never right",
}
TASK_PARTS: dict[str, TaskPart] = {
    "unharmed": "preserved",
    "healed": "healed",
    "partly healed": "partly healed",
    "not healed": "not healed",
    "newly damaged": "newly damaged",
    "preserved": "task kept",
}
NORMAL_95 = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(frozen=True)
class ItemPartition:
    """One task's items, each with its part."""

    task: str
    metric: str
    item_ids: tuple[str, ...]
    parts: tuple[ItemPart, ...]  # one per item

    def count(self, *parts: ItemPart) -> int:
        """Items in any of `parts`."""
        return sum(part in parts for part in self.parts)

    def share(self, part: ItemPart) -> Estimate:
        """Items of `part` among all."""
        return wilson(self.count(part), len(self.parts))

    @property
    def healed_of_damaged(self) -> Estimate | None:
        """Items healed, of those that the damage took; none where it took none."""
        damaged = self.count("healed", "not healed")
        return wilson(self.count("healed"), damaged) if damaged else None


@dataclass(frozen=True)
class TaskPartition:
    """The tasks of each part, in their order, and the one that is left worst off."""

    tasks: dict[TaskPart, tuple[str, ...]]  # every part, empty ones too
    worst: TaskComparison | None  # none where no task's scores are shares


def partition_items(
    reference: Sequence[TaskItems], degraded: Sequence[TaskItems], recovered: Sequence[TaskItems]
) -> tuple[ItemPartition, ...]:
    """The items of each task whose scores are all 0 or 1, task by task.

    Raises:
        DataError: the models were not scored on the same tasks, items and metrics.
    """
    models = reference, degraded, recovered
    names = [[(task.task, task.metric, task.item_ids) for task in model] for model in models]
    if any(others != names[0] for others in names):
        raise DataError(
            "the models were not scored on the same items; evaluate them with one limit, seed and task list"
        )
    return tuple(
        ItemPartition(
            task=items[0].task,
            metric=items[0].metric,
            item_ids=items[0].item_ids,
            parts=tuple(
                TRANSITIONS[bool(before), bool(broken), bool(after)]
                for before, broken, after in zip(*(model.scores for model in items), strict=True)
            ),
        )
        for items in zip(*models, strict=True)
        if all(score in (0, 1) for model in items for score in model.scores)
    )


def count_parts(partitions: Sequence[ItemPartition]) -> dict[ItemPart, int]:
    """Items of each part over all tasks, empty parts too; a task weighs as many items as it has."""
    return {part: sum(partition.count(part) for partition in partitions) for part in TRANSITIONS.values()}


def partition_tasks(comparisons: Sequence[TaskComparison]) -> TaskPartition:
    """The tasks of a repair by their verdicts, and the worst.

    Raises:
        DataError: there is no recovered model, so that nothing could be healed or newly damaged.
    """
    unrepaired = [task.task for task in comparisons if task.recovered is None]
    if unrepaired:
        raise DataError(f"{', '.join(unrepaired)}: no recovered model was scored; evaluate one to see what it healed")
    parts = {task.task: TASK_PARTS[task.verdict] for task in comparisons}
    tasks = {part: tuple(name for name in parts if parts[name] == part) for part in TASK_PARTS.values()}
    return TaskPartition(tasks, worst_task(comparisons))


def worst_task(comparisons: Sequence[TaskComparison]) -> TaskComparison | None:
    """The task with the largest loss against the reference, after the repair or, without one, after the damage.

    Only tasks whose scores are shares (0 to 1) are comparable: a nat of log p is not a point of accuracy. The largest of
    many noisy losses is above zero even where nothing was lost, so read its interval and its verdict with it.
    """
    comparable = [task for task in comparisons if is_share(task) and not math.isnan(left(task).value)]
    return min(comparable, key=lambda task: left(task).value, default=None)


def is_share(task: TaskComparison) -> bool:
    """Whether the scores are shares (an accuracy is one, a log-probability is not); one that is not a number says nothing."""
    models = task.reference, task.degraded, task.recovered
    return not any(model.value < 0 or model.value > 1 for model in models if model is not None)


def left(task: TaskComparison) -> Estimate:
    """What is left of the loss: the repaired model against the reference, without a repair the damaged one."""
    return task.remaining or task.damage


def wilson(count: int, total: int) -> Estimate:
    """`count` / `total` with Wilson's 95% score interval (1927, JASA 22, 209), which is not empty at 0 or at 1."""
    share, z_squared = count / total, NORMAL_95**2
    middle = (share + z_squared / (2 * total)) / (1 + z_squared / total)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / total + z_squared / (4 * total**2)) / (1 + z_squared / total)
    return Estimate(value=share, low=min(share, max(0.0, middle - half)), high=max(share, min(1.0, middle + half)))
