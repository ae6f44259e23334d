"""Several runs as tables; pure functions of their records."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from recoup.report.correlation import Correlation
from recoup.report.grid import Grid, known, known_interval
from recoup.report.partial import MEASURES, student
from recoup.report.shared import Compared, Shared
from recoup.report.table import recovered_fraction
from recoup.report.words import DASH, duration, gibibytes, interval, number, significant, significant_interval
from recoup.results import DiagnoseResult, Estimate, TaskComparison

LEAST_ITEMS = 10  # fewer differences than these are far from normal


def score_grid(shared: Shared) -> Grid:
    """A row per shared benchmark: reference and damaged model, once where all runs have the same, then each repair."""
    rows = []
    for name in shared.tasks:
        tasks = {one.key: one.task_by_name[name] for one in shared.runs}
        repaired = [known_interval(task.recovered) for task in tasks.values()]
        rows.append((_named(name, shared), _common(tasks, "reference"), _common(tasks, "degraded"), *repaired))
    columns = ("Task", "Reference", "Damaged", *(f"{one.key} repaired" for one in shared.runs))
    return Grid("Benchmarks, with 95% intervals", columns, tuple(rows))


def _named(name: str, shared: Shared) -> str:
    task = shared.runs[0].task_by_name[name]
    return f"{name} ({task.metric}, n = {task.num_items:,})"


def _common(tasks: dict[str, TaskComparison], state: str) -> str:
    estimates: dict[str, Estimate] = {key: getattr(task, state) for key, task in tasks.items()}
    if len({estimate.value for estimate in estimates.values()}) == 1:
        return interval(next(iter(estimates.values())))
    return ", ".join(f"{key} {number(estimate.value)}" for key, estimate in estimates.items())


def fraction_grid(shared: Shared) -> Grid:
    """A row per shared benchmark: what share of the loss each run brought back, and the verdict."""
    rows = tuple(
        (name, *(f"{recovered_fraction(task)}: {task.verdict}" for task in (one.task_by_name[name] for one in shared.runs)))
        for name in shared.tasks
    )  # fmt: skip
    return Grid("Recovered fraction and verdict", ("Task", *(one.key for one in shared.runs)), rows)


def other_grid(shared: Shared) -> Grid:
    """A row per benchmark that is not compared: each run's own scores, and its own verdict."""
    rows = tuple(
        (name, reason, *(_own(one.task_by_name.get(name)) for one in shared.runs))
        for name, reason in shared.others.items()
    )
    columns = ("Task", "Why it is not compared", *(one.key for one in shared.runs))
    caption = "Each for itself: damaged → repaired, and the verdict of its own run"
    return Grid(caption, columns, rows, words=(1,))


def _own(task: TaskComparison | None) -> str:
    if task is None:
        return DASH
    after = f" → {number(task.recovered.value)}" if task.recovered else ""
    return f"{number(task.degraded.value)}{after}, {task.verdict}"


def difference_grid(shared: Shared) -> Grid:
    """A row per shared benchmark: each repaired model less the first run's, paired by item."""
    first, *others = shared.runs or (None,)
    rows: list[tuple[str, ...]] = []
    for name in shared.tasks if first else ():
        assert first is not None
        cells = [known_interval(_difference(one, first, name)) for one in others]
        if any(cell != DASH for cell in cells):
            rows.append((name, *cells))
    columns = ("Task", *(f"{one.key} − {first.key}" for one in others if first))
    return Grid(
        "Differences of the repaired models, paired by item, with 95% intervals over items", columns, tuple(rows)
    )


def _difference(one: Compared, first: Compared, name: str) -> Estimate | None:
    """Mean difference with Student's interval; null where the items are not there, or are too few."""
    items = [run.items(name) for run in (one, first)]
    scores = [found.scores for found in items if found is not None]
    if len(scores) != len(items) or len(scores[0]) < LEAST_ITEMS or len(scores[0]) != len(scores[1]):
        return None
    differences = [a - b for a, b in zip(*scores, strict=True)]
    half = student(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    middle = fmean(differences)
    return Estimate(value=middle, low=middle - half, high=middle + half)


def fidelity_grid(runs: Sequence[Compared]) -> Grid:
    """A row per run that was evaluated or diagnosed: how far its words are from its reference's."""
    rows = []
    for one in runs:
        before, after = one.run.fidelity
        if known_one := before or after:
            rows.append(
                (
                    _run_name(one),
                    significant_interval(before.token_kl_nats) if before else DASH,
                    significant_interval(after.token_kl_nats) if after else DASH,
                    interval(after.top1_agreement) if after else DASH,
                    significant(known_one.reference_perplexity),
                    significant(after.student_perplexity) if after else DASH,
                    f"{known_one.num_tokens:,}",
                )
            )
    columns = (
        "Run", "Token KL damaged, nats", "Token KL repaired, nats", "Top-1 agreement repaired", "Perplexity of the reference",
        "Perplexity repaired", "Tokens",
    )  # fmt: skip
    return Grid("Fidelity of each run to its reference, with 95% intervals", columns, tuple(rows))


def cka_grid(runs: Sequence[Compared]) -> Grid:
    """A row per diagnosed run: CKA over its layers before and after."""
    rows = tuple(
        (_run_name(one), *_cka(one.run.before), *_cka(one.run.after)) for one in runs if one.run.before or one.run.after
    )
    columns = ("Run", "Mean before", "Lowest before", "Mean after", "Lowest after")
    return Grid("Linear CKA of the layers with the reference's, debiased", columns, rows)


def _cka(diagnosis: DiagnoseResult | None) -> tuple[str, str]:
    if diagnosis is None or not diagnosis.layers:
        return DASH, DASH
    lowest = min(diagnosis.layers, key=lambda layer: layer.linear_cka)
    mean = fmean(layer.linear_cka for layer in diagnosis.layers)
    return known(mean), f"{known(lowest.linear_cka)} (layer {lowest.layer})"


def cost_grid(runs: Sequence[Compared]) -> Grid:
    """A row per repaired run: the method and what it took."""
    rows = tuple(
        (
            _run_name(one),
            repair.method,
            f"{repair.num_tokens:,}",
            f"{repair.steps:,}",
            duration(repair.seconds),
            gibibytes(repair.peak_memory_bytes),
            "exact" if repair.structure_exact else "NOT exact",
        )
        for one in runs
        if (repair := one.run.recovery) is not None
    )
    columns = ("Run", "Method", "Completion tokens", "Steps", "Time", "Peak memory", "Structure")
    return Grid("What each repair took", columns, rows, words=(1, 6))


def correlation_grid(correlations: Sequence[Correlation]) -> Grid:
    """A row per injury and capability."""
    rows = tuple(
        (
            f"{row.injury}: {row.capability}",
            f"{row.num_points:,} {row.points}",
            *(known_interval(getattr(row, name)) for name in MEASURES),
            row.answer,
        )
        for row in correlations
    )
    columns = (
        "CKA against",
        "Points",
        "Pearson",
        "Spearman",
        "Pearson, step out",
        "Spearman, step out",
        "Beyond the step?",
    )
    return Grid("Gain in CKA against gain in capability, with 95% intervals", columns, rows, words=(1, 6))


def _run_name(one: Compared) -> str:
    return f"{one.key}: {one.run.name}"
