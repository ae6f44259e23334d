"""A leaderboard as Markdown and in a terminal; pure functions of a `SweepResult`. A cell that is empty says why.

Rows stand as on the page of the sweep (`recoup.report.leaderboard_grids`): the best first, by recovered fraction of general
ability plus that of the task, points gained over the damaged model in place of a fraction that has no meaning. So a method that
gives general ability back by forgetting what a fine-tune taught loses as much as it gains.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recoup.report.leaderboard_grids import injuries, ranked, row_name, standing
from recoup.report.leaderboard_words import said
from recoup.report.words import (
    DASH,
    counted,
    interval,
    number,
    one_line,
    percent_interval,
    significant_interval,
)
from recoup.results import Estimate
from recoup.results.sweep import OURS, MethodRow, SweepResult
from recoup.sweep.expand import NONE

HEADER = (
    "method", "general score", "general recovered", "task score", "task recovered", f"{OURS} − this", "token KL, nats",
    "top-1 agreement", "CKA", "newly damaged", "tokens", "minutes", "peak GiB", "on its structure", "seeds",
)  # fmt: skip
IN_A_TERMINAL = (*HEADER[:7], "tokens", "minutes", "seeds")
GIB = 2**30
NOT_SCORED = f"{DASH} (not scored)"
LEGEND = (
    "Intervals are 95%, over seeds and items; of one seed, over items. The best of an injury is marked ★. "
    f"`{OURS} − this` is the difference in general score, paired by seed and item; newly damaged are items of general tasks "
    "that were right before and after the damage and are wrong after the repair; tokens, minutes and memory are the repair's."
)
_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|])")


@dataclass(frozen=True)
class Board:
    """One injury's table; every cell is text."""

    injury: str
    about: str  # what the damage did, who is above whom, and whether it cost the same
    rows: tuple[tuple[str, ...], ...]  # best first, cells as in HEADER

    def has(self, column: str) -> bool:
        """Whether anything was scored in a column of HEADER; the line above the table says it of one where nothing was."""
        place = HEADER.index(column)
        return any(row[place] != NOT_SCORED for row in self.rows)


def boards(result: SweepResult) -> tuple[Board, ...]:
    """A table per injury, in the order of the sweep."""
    return tuple(
        Board(injury, _about(injury, result), _rows(ranked(result, injury), result)) for injury in injuries(result)
    )


def leaderboard_markdown(result: SweepResult) -> str:
    """The whole leaderboard as GitHub-flavoured Markdown, with what failed and what was left out."""
    parts = [f"# {_markdown(result.name)}", LEGEND]
    for board in boards(result):
        header = [column for column in HEADER if board.has(column)]
        rule = f"| :--- |{' ---: |' * (len(header) - 1)}"
        cells = [dict(zip(HEADER, row, strict=True)) for row in board.rows]
        lines = [_line(header), rule, *(_line([row[column] for column in header]) for row in cells)]
        parts += [f"## {board.injury}", board.about, "\n".join(lines)]
    if not result.rows:
        parts.append("No run is finished yet.")
    for title, reasons in _left_out(result):
        parts += [f"## {title}", "\n".join(f"- {name}: {_markdown(reason)}" for name, reason in reasons.items())]
    return "\n\n".join(parts) + "\n"


def show_leaderboard(console: Console, result: SweepResult) -> None:
    """The columns that matter most in a terminal, with what failed and what was left out."""
    for board in boards(result):
        console.print(f"{board.injury}: {board.about}", markup=False, highlight=False, soft_wrap=True)
        header = [column for column in IN_A_TERMINAL if board.has(column)]
        table = Table(*header)
        for row in board.rows:
            cells = dict(zip(HEADER, row, strict=True))
            table.add_row(*(escape(cells[column]) for column in header))
        console.print(table)
    for title, reasons in _left_out(result):
        console.print(f"{title}:")
        for name, reason in reasons.items():
            console.print(f"  {name}: {' '.join(reason.split())}", markup=False, highlight=False, soft_wrap=True)


def _about(injury: str, result: SweepResult) -> str:
    return " ".join([f"{_damage(injury, result)}.", *said(result, injury)])


def _damage(injury: str, result: SweepResult) -> str:
    """One line: what reference and damaged model score."""
    general, task = (
        f"{what} {interval(before[injury])} → {interval(after[injury])}" if injury in before else f"{what} not scored"
        for what, before, after in (
            ("general score", result.reference, result.degraded),
            ("task score", result.reference_task, result.degraded_task),
        )
    )
    return f"reference → damaged: {general}; {task}"


def _rows(rows: Sequence[MethodRow], result: SweepResult) -> tuple[tuple[str, ...], ...]:
    """The first is marked where it stands above the second."""
    cells = [_cells(row, result) for row in rows]
    if len(rows) > 1 and standing(rows[0], result) > standing(rows[1], result):
        cells[0] = (f"{cells[0][0]} ★", *cells[0][1:])
    return tuple(cells)


def _cells(row: MethodRow, result: SweepResult) -> tuple[str, ...]:
    return (
        row_name(row),
        _score(row.general),
        _fraction(row.general_fraction, result.reference.get(row.injury), result.degraded.get(row.injury)),
        _score(row.task),
        _fraction(row.task_fraction, result.reference_task.get(row.injury), result.degraded_task.get(row.injury)),
        _against(row, result),
        significant_interval(row.token_kl_nats),
        interval(row.top1_agreement),
        f"{DASH} (not diagnosed)" if row.cka is None else number(row.cka),
        f"{row.newly_damaged:,}",
        f"{row.num_tokens:,.0f}",
        number(row.minutes, 1),
        number(row.peak_memory_bytes / GIB, 1),
        "exact" if row.structure_exact else "VIOLATED",
        str(row.num_seeds),
    )


def _score(score: Estimate | None) -> str:
    return NOT_SCORED if score is None else interval(score)


def _fraction(fraction: Estimate | None, reference: Estimate | None, degraded: Estimate | None) -> str:
    if fraction is not None:
        return percent_interval(fraction)
    if reference is None or degraded is None:
        return NOT_SCORED
    raised = degraded.low > reference.high
    return f"{DASH} (raised by the damage)" if raised else f"{DASH} (damage not significant)"


def _against(row: MethodRow, result: SweepResult) -> str:
    if row.against is not None:
        return interval(row.against)
    if row.method == OURS:
        return DASH
    if row.general is None:
        return NOT_SCORED
    variants = {other.variant for other in result.rows if (other.injury, other.method) == (row.injury, OURS)}
    if row.method == NONE and variants - {None}:
        return f"{DASH} (several variants)"
    return f"{DASH} (no finished {OURS} run of these seeds)"


def _left_out(result: SweepResult) -> list[tuple[str, Mapping[str, str]]]:
    both = (("failed", result.failed), ("impossible", result.skipped))
    return [(f"{counted(len(reasons), 'run')} {word}", reasons) for word, reasons in both if reasons]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """Text on one line, with nothing left that Markdown or HTML would act on."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", one_line(text))
