"""A sweep's rows as tables; pure functions of its result."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recoup.report.grid import Grid, known, known_interval, without_empty_columns
from recoup.report.words import DASH, duration, gibibytes, interval, percent_interval, significant_interval
from recoup.results import Estimate
from recoup.results.sweep import Before, BeforeRepair, Measured, MethodRow, SweepResult

NOT_SCORED = BeforeRepair(general=None, text=None, task=None)
BEST = "▲ "  # before the highest value of a column
_SECONDS_PER_MINUTE = 60


def injuries(result: SweepResult) -> list[str]:
    """Those with a method that is done, in their order."""
    return list(dict.fromkeys(row.injury for row in result.rows))


def ranked(result: SweepResult, injury: str) -> list[MethodRow]:
    """The methods of an injury, the best first."""
    return sorted((row for row in result.rows if row.injury == injury), key=lambda row: -standing(row, result))


def standing(row: MethodRow, result: SweepResult) -> float:
    """Recovered fraction of general ability plus that of the task, what an injury's methods are ordered by.

    General ability is that of the benchmarks, or of the texts where benchmarks show no significant damage and texts do. Where
    a fraction has no meaning, because the damage is not significant, points gained over the damaged model count.
    """
    before = result.before.get(row.injury, NOT_SCORED)
    by_text = row.text is not None and row.text.fraction is not None
    if by_text and (row.general is None or row.general.fraction is None):
        return _gain(row.text, before.text) + _gain(row.task, before.task)
    return _gain(row.general, before.general) + _gain(row.task, before.task)


def _gain(measured: Measured | None, before: Before | None) -> float:
    if measured is None:
        return 0.0
    if measured.fraction is not None:
        return measured.fraction.value
    return 0.0 if before is None else measured.score.value - before.degraded.value


def row_name(row: MethodRow) -> str:
    """The method, with its variant where there are several."""
    return f"{row.method} ({row.variant})" if row.variant else row.method


def method_grid(result: SweepResult, injury: str) -> Grid:
    """Reference and damaged model, then a row per method, the best first; the highest score of a column is marked."""
    rows = ranked(result, injury)
    before = result.before.get(injury, NOT_SCORED)
    measures = [
        ("General", before.general, [row.general for row in rows]),
        ("Text", before.text, [row.text for row in rows]),
        ("Task", before.task, [row.task for row in rows]),
    ]
    parts = [_measure(name, given, column) for name, given, column in measures]
    columns = (
        "Method", "Seeds", *(name for part in parts for name in part.columns), "Token KL, nats", "Top-1 agreement", "Mean CKA",
        "Newly damaged items", "Completion tokens", "Time", "Peak memory", "Structure",
    )  # fmt: skip
    given = [
        _filled([name, DASH, *(cell for part in parts for cell in part.given[place])], len(columns))
        for place, name in enumerate(("reference", "damaged"))
    ]
    measured = [
        (
            row_name(row),
            str(row.num_seeds),
            *(cell for part in parts for cell in part.rows[place]),
            significant_interval(row.token_kl_nats),
            interval(row.top1_agreement),
            known(row.cka),
            f"{row.newly_damaged:,}",
            f"{row.num_tokens:,.0f}",
            duration(_SECONDS_PER_MINUTE * row.minutes),
            gibibytes(row.peak_memory_bytes),
            "exact" if row.structure_exact else "NOT exact",
        )
        for place, row in enumerate(rows)
    ]
    ours = "".join(f"; ours is {row_name(row)}" for row in rows if row.ours)
    caption = f"{injury}: means over seeds, with 95% intervals; {BEST.strip()} marks the highest{ours}"
    return without_empty_columns(Grid(caption, columns, (*given, *measured), words=(len(columns) - 1,)))


@dataclass(frozen=True)
class _Part:
    """The columns of one measure."""

    columns: tuple[str, str, str]
    given: tuple[tuple[str, str, str], ...]  # of reference and damaged model
    rows: tuple[tuple[str, str, str], ...]


def _measure(name: str, before: Before | None, measured: Sequence[Measured | None]) -> _Part:
    scores = _marked([one.score if one else None for one in measured], interval)
    fractions = _marked([one.fraction if one else None for one in measured], percent_interval)
    contrasts = [known_interval(one.against if one else None) for one in measured]
    unit = ", log p" if name == "Text" else ""
    states = (before.reference, before.degraded) if before else (None, None)
    return _Part(
        (f"{name} score{unit}", f"{name} fraction", f"Ours − it, {name.lower()}"),
        tuple((known_interval(state), DASH, DASH) for state in states),
        tuple(zip(scores, fractions, contrasts, strict=True)),
    )


def _marked(values: Sequence[Estimate | None], show: Callable[[Estimate], str]) -> list[str]:
    """A column's cells; the highest is marked, if there is something to be higher than."""
    real = [value for value in values if value is not None and not math.isnan(value.value)]
    best = max(real, key=lambda value: value.value) if len(real) > 1 else None
    return [f"{BEST if value is best and best else ''}{known_interval(value, show)}" for value in values]


def _filled(cells: Sequence[str], num_columns: int) -> tuple[str, ...]:
    return (*cells, *[DASH] * (num_columns - len(cells)))


def pages_of(result: SweepResult, injury: str, pages: Mapping[str, str]) -> dict[str, str]:
    """The runs of an injury that have a page, best method first: name → address."""
    names = [name for row in ranked(result, injury) for name in row.runs]
    return {name: pages[name] for name in names if name in pages}
