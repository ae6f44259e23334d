"""What was lost, what came back, what it cost, what to do next: a plain paragraph each, from the records of a run.

A loss or a gain of a benchmark is claimed where the evaluation's tests found one; counts of items are what happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recoup.report.advice import advice
from recoup.report.gather import Run
from recoup.report.items import items_of
from recoup.report.partition import ItemPart, count_parts, is_share, left, partition_tasks, worst_task
from recoup.report.words import (
    counted,
    duration,
    gibibytes,
    interval,
    listed,
    number,
    percent_interval,
    significant,
    significant_interval,
)
from recoup.results import EvaluateResult, RecoverResult, TaskComparison

MOST_NAMED = 4  # benchmarks that a sentence names; the table has them all


@dataclass(frozen=True)
class Paragraph:
    """One question of a reader, and its answer."""

    title: str
    text: str


def story(run: Run) -> tuple[Paragraph, ...]:
    """The four paragraphs; what was not measured is said, not passed over."""
    parts = count_parts(items_of(run))
    told = {
        "What was lost": _lost(run, parts),
        "What came back": _came_back(run, parts),
        "What it cost": _cost(run),
        "What to do next": advice(run),
    }
    return tuple(Paragraph(title, " ".join(filter(None, sentences))) for title, sentences in told.items())


def _lost(run: Run, parts: dict[ItemPart, int]) -> list[str]:
    kl = run.fidelity[0]
    layers = run.before.layers if run.before else ()
    lowest = min(layers, key=lambda layer: layer.linear_cka, default=None)
    taken = parts["healed"] + parts["not healed"]
    right = taken + parts["preserved"] + parts["newly damaged"]
    return [
        _lost_tasks(run.evaluation) if run.evaluation else "Benchmarks were not run.",
        f"Of {counted(right, 'item')} that the reference gets right, the damaged model gets {taken:,} wrong." if right else "",
        f"Word by word the damaged model is {significant_interval(kl.token_kl_nats)} nats from the reference (token KL), and "
        f"its likeliest token is the reference's in {percent_interval(kl.top1_agreement)} of places."
        if kl
        else "Token KL was not measured.",
        f"Hidden states differ most in layer {lowest.layer} (CKA {number(lowest.linear_cka)})." if lowest else "",
    ]  # fmt: skip


def _lost_tasks(evaluation: EvaluateResult) -> str:
    tasks = evaluation.tasks
    lost = [task for task in tasks if task.damage_significant]
    lost.sort(key=lambda task: (not is_share(task), task.damage.value))  # a nat of log p is not a point of accuracy
    if not tasks:
        return "No benchmark was evaluated."
    if not lost:
        return f"None of {counted(len(tasks), 'benchmark')} fell significantly."
    named = [f"{task.task} from {number(task.reference.value)} to {number(task.degraded.value)}" for task in lost]
    return f"{len(lost)} of {counted(len(tasks), 'benchmark')} fell significantly: {listed(named, MOST_NAMED)}."


def _came_back(run: Run, parts: dict[ItemPart, int]) -> list[str]:
    if run.evaluation is None or run.evaluation.recovered_fidelity is None:
        return ["No repair was evaluated."]
    before, after = run.evaluation.degraded_fidelity, run.evaluation.recovered_fidelity
    lost = parts["healed"] + parts["not healed"]
    return [
        *_came_back_tasks(run.evaluation.tasks),
        f"Of the {counted(lost, 'item')} that the damage took, the repair brought back {parts['healed']:,}; of "
        f"those that it had left, the repair newly got {parts['newly damaged']:,} wrong."
        if lost
        else "",
        f"Token KL went from {significant(before.token_kl_nats.value)} to {significant_interval(after.token_kl_nats)} nats.",
    ]


def _came_back_tasks(tasks: Sequence[TaskComparison]) -> list[str]:
    if not tasks or any(task.recovered is None for task in tasks):
        return []
    found = partition_tasks(tasks)
    by_name = {task.task: task for task in tasks}
    words = {
        "healed": "Healed",
        "partly healed": "Partly healed",
        "not healed": "Not healed",
        "task kept": "Gain of the damaging step kept",
        "newly damaged": "Newly damaged by the repair",
    }
    sentences = [
        f"{words[part]}: {listed([_with_fraction(by_name[name]) for name in names], MOST_NAMED)}."
        for part, names in found.tasks.items()
        if part in words and names
    ]
    return [*(sentences or ["No benchmark was to heal, and none got worse."]), _worst(tasks)]


def _with_fraction(task: TaskComparison) -> str:
    fraction = task.recovered_fraction
    return f"{task.task} ({percent_interval(fraction)} of the loss)" if fraction else task.task


def _worst(tasks: Sequence[TaskComparison]) -> str:
    worst = worst_task(tasks)
    if worst is None or left(worst).value >= 0:
        return ""
    return f"Furthest below the reference now: {worst.task}, by {interval(left(worst))}."


def _cost(run: Run) -> list[str]:
    if run.recovery is None:
        return ["Nothing was repaired in this run."]
    return [_repair_cost(run.recovery), _kept(run.recovery)]


def _repair_cost(recovery: RecoverResult) -> str:
    took = f"{duration(recovery.seconds)} and {gibibytes(recovery.peak_memory_bytes)} of memory at the peak"
    if not recovery.steps:
        note = f" ({recovery.note})" if recovery.note else ""
        return f"The method {recovery.method}{note} trains nothing; it took {took}."
    ended = f" It ended early: {recovery.stopped}." if recovery.stopped else ""
    return (
        f"The method {recovery.method} took {counted(recovery.steps, 'step')} over {recovery.num_tokens:,} completion tokens "
        f"of {counted(recovery.num_prompts, 'prompt')}: {took}.{ended}"
    )


def _kept(recovery: RecoverResult) -> str:
    if recovery.structure_exact:
        return f"The structure was kept exactly: {recovery.structure}."
    return f"The structure was not kept exactly: {recovery.structure}."
