"""Item by item: what became of the items of each benchmark, its further scores, and a few items as the models answered them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recoup.errors import DataError
from recoup.report.gather import Run
from recoup.report.grid import Grid, known_interval
from recoup.report.partition import TRANSITIONS, ItemPartition, partition_items
from recoup.report.words import DASH, number, percent_interval
from recoup.results import ModelScores, TaskItems

# of a sample; whatever else it holds are scores and notes
SHOWN_APART = ("item", "prompt", "completion", "answers", "gold")


@dataclass(frozen=True)
class Answer:
    """What one model answered, and what it got for that."""

    model: str
    scores: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One item of a benchmark."""

    item: str
    prompt: str
    gold: str
    part: str  # what became of it; empty where that is not known
    answers: tuple[Answer, ...]


def items_of(run: Run) -> tuple[ItemPartition, ...]:
    """Parts of the items of a repaired run; none where a model's items are not there, or are other items."""
    models = [run.scores[state].tasks for state in ("reference", "degraded", "recovered") if state in run.scores]
    if len(models) != len(next(iter(TRANSITIONS))):
        return ()
    try:
        return partition_items(*models)
    except DataError:  # scored apart, by hand say: there is nothing to pair
        return ()


def partition_grid(partitions: Sequence[ItemPartition]) -> Grid:
    """A row per benchmark: how many of its items are of each part."""
    parts = tuple(TRANSITIONS.values())
    rows = tuple(
        (
            found.task,
            f"{len(found.parts):,}",
            *(f"{found.count(part):,}" for part in parts),
            known_interval(found.healed_of_damaged, percent_interval),
        )
        for found in partitions
    )
    columns = ("Task", "Items", *(part.capitalize() for part in parts), "Healed of the damaged")
    return Grid("What became of each item, for benchmarks of right and wrong", columns, rows)


def further_grid(scores: Mapping[str, ModelScores]) -> Grid | None:
    """A row per named score beside the one that a benchmark is compared by; null where there is none."""
    tasks = {state: {task.task: task for task in model.tasks} for state, model in scores.items()}
    first = next(iter(tasks.values()), {})
    rows = []
    for task in first.values():
        for name in (task.metric, *task.further) if task.further else ():
            means = [_mean(found.get(task.task), name) for found in tasks.values()]
            ceiling = task.ceilings.get(name)
            rows.append((f"{task.task}: {name}", *means, DASH if ceiling is None else number(ceiling)))
    if not rows:
        return None
    columns = ("Task and score", *(state.capitalize() for state in tasks), "What the gold answers score")
    return Grid("Further scores of the same answers, means over items", columns, tuple(rows))


def samples(run: Run) -> dict[str, tuple[Sample, ...]]:
    """By task, the items whose text was kept."""
    parts = {found.task: dict(zip(found.item_ids, found.parts, strict=True)) for found in items_of(run)}
    kept = {state: {task.task: _by_item(task) for task in model.tasks} for state, model in run.scores.items()}
    found = {}
    for task, shown in next(iter(kept.values()), {}).items():
        if shown:
            found[task] = tuple(
                _sample(
                    item, {state: tasks.get(task, {}).get(item) for state, tasks in kept.items()}, parts.get(task, {})
                )
                for item in shown
            )
    return found


def _by_item(task: TaskItems) -> dict[str, dict[str, Any]]:
    return {str(sample.get("item", place)): sample for place, sample in enumerate(task.samples)}


def _sample(item: str, by_state: Mapping[str, dict[str, Any] | None], parts: Mapping[str, str]) -> Sample:
    answered = {state: sample for state, sample in by_state.items() if sample is not None}
    first = next(iter(answered.values()))
    return Sample(
        item=item,
        prompt=str(first.get("prompt", "")),
        gold=str(first.get("gold", "")),
        part=parts.get(item, ""),
        answers=tuple(Answer(state, _scores(sample), _text(sample)) for state, sample in answered.items()),
    )


def _scores(sample: Mapping[str, Any]) -> str:
    """What is not text: `exact 1, valid 1`."""
    numbers = {
        name: value for name, value in sample.items() if name not in SHOWN_APART and isinstance(value, int | float)
    }
    return ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def _text(sample: Mapping[str, Any]) -> str:
    """The completion, or each answer that was weighed with its log p; then whatever else was noted."""
    lines = [str(sample["completion"])] if "completion" in sample else []
    answers = sample.get("answers")
    lines += [" | ".join(map(str, row)) if isinstance(row, list | tuple) else str(row) for row in answers or ()]
    lines += [
        f"{name}: {value}"
        for name, value in sample.items()
        if name not in SHOWN_APART and value and not isinstance(value, int | float)
    ]
    return "\n".join(lines)


def _mean(task: TaskItems | None, name: str) -> str:
    scores = () if task is None else task.scores if name == task.metric else task.further.get(name, ())
    return number(sum(scores) / len(scores)) if scores else DASH
