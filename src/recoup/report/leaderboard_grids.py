"""A sweep's rows as tables; pure functions of its result."""

import math
from collections.abc import Callable, Mapping, Sequence

from recoup.report.grid import Grid, known, known_interval, without_empty_columns
from recoup.report.words import DASH, duration, gibibytes, interval, percent_interval, significant_interval
from recoup.results import Estimate
from recoup.results.sweep import MethodRow, SweepResult

BEST = "▲ "  # before the highest value of a column
_SECONDS_PER_MINUTE = 60


def injuries(result: SweepResult) -> list[str]:
    """Those with a method that is done, in their order."""
    return list(dict.fromkeys(row.injury for row in result.rows))


def ranked(result: SweepResult, injury: str) -> list[MethodRow]:
    """The methods of an injury, the best first."""
    return sorted((row for row in result.rows if row.injury == injury), key=lambda row: -standing(row, result))


def standing(row: MethodRow, result: SweepResult) -> float:
    """Recovered fraction of the general score plus that of the task, what an injury's methods are ordered by.

    Where a fraction has no meaning, because the damage is not significant, points gained over the damaged model count.
    """
    general = _gain(row.general, row.general_fraction, result.degraded.get(row.injury))
    return general + _gain(row.task, row.task_fraction, result.degraded_task.get(row.injury))


def _gain(score: Estimate | None, fraction: Estimate | None, degraded: Estimate | None) -> float:
    if fraction is not None:
        return fraction.value
    return 0.0 if score is None or degraded is None else score.value - degraded.value


def row_name(row: MethodRow) -> str:
    """The method, with its variant where there are several."""
    return f"{row.method} ({row.variant})" if row.variant else row.method


def method_grid(result: SweepResult, injury: str) -> Grid:
    """Reference and damaged model, then a row per method, the best first; the highest score of a column is marked."""
    rows = ranked(result, injury)
    best = {name: _highest(rows, name) for name in ("general", "task", "general_fraction", "task_fraction")}

    def cell(row: MethodRow, name: str, show: Callable[[Estimate], str] = interval) -> str:
        mark = BEST if row is best[name] else ""
        return f"{mark}{known_interval(getattr(row, name), show)}"

    columns = (
        "Method", "Seeds", "General score", "General fraction", "Task score", "Task fraction", "onpolicy − it, general",
        "Token KL, nats", "Top-1 agreement", "Mean CKA", "Newly damaged items", "Completion tokens", "Time", "Peak memory",
        "Structure",
    )  # fmt: skip
    given = [
        _given("reference", result.reference.get(injury), result.reference_task.get(injury), len(columns)),
        _given("damaged", result.degraded.get(injury), result.degraded_task.get(injury), len(columns)),
    ]
    measured = [
        (
            row_name(row),
            str(row.num_seeds),
            cell(row, "general"),
            cell(row, "general_fraction", percent_interval),
            cell(row, "task"),
            cell(row, "task_fraction", percent_interval),
            known_interval(row.against),
            significant_interval(row.token_kl_nats),
            interval(row.top1_agreement),
            known(row.cka),
            f"{row.newly_damaged:,}",
            f"{row.num_tokens:,.0f}",
            duration(_SECONDS_PER_MINUTE * row.minutes),
            gibibytes(row.peak_memory_bytes),
            "exact" if row.structure_exact else "NOT exact",
        )
        for row in rows
    ]
    caption = f"{injury}: means over seeds, with 95% intervals; {BEST.strip()} marks the highest"
    return without_empty_columns(Grid(caption, columns, (*given, *measured), words=(14,)))


def _given(name: str, general: Estimate | None, task: Estimate | None, num_columns: int) -> tuple[str, ...]:
    cells = (name, DASH, known_interval(general), DASH, known_interval(task))
    return (*cells, *[DASH] * (num_columns - len(cells)))


def _highest(rows: Sequence[MethodRow], name: str) -> MethodRow | None:
    """The row with the highest value, if there is something to be higher than."""
    values = [(getattr(row, name).value, row) for row in rows if getattr(row, name) is not None]
    real = [(value, row) for value, row in values if not math.isnan(value)]
    return max(real, key=lambda pair: pair[0])[1] if len(real) > 1 else None


def pages_of(result: SweepResult, injury: str, pages: Mapping[str, str]) -> dict[str, str]:
    """The runs of an injury that have a page, best method first: name → address."""
    names = [name for row in ranked(result, injury) for name in row.runs]
    return {name: pages[name] for name in names if name in pages}
