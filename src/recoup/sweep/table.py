"""A leaderboard as Markdown and in a terminal; pure functions of a `SweepResult`. A cell that is empty says why.

Rows stand as on the page of the sweep (`recoup.report.leaderboard_grids`): the best first, by recovered fraction of general
ability plus that of the task (`leaderboard_grids.standing`). So a method that
gives general ability back by forgetting what a fine-tune taught loses as much as it gains.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recoup.report.leaderboard_grids import NOT_SCORED as NOTHING
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
from recoup.results.sweep import Before, Measured, MethodRow, SweepResult

MEASURES = ("general", "text", "task")  # of a row and of an injury before repair
CONTRAST = "ours − this"
COLUMNS = {"general": "general score", "text": "text, log p", "task": "task score"}
MEASURED = tuple(column for name in MEASURES for column in (COLUMNS[name], f"{name} recovered", f"{CONTRAST}, {name}"))
HEADER = (
    "method", *MEASURED, "token KL, nats", "top-1 agreement", "CKA", "newly damaged", "tokens", "minutes", "peak GiB",
    "on its structure", "seeds",
)  # fmt: skip
IN_A_TERMINAL = (
    "method", *(column for column in MEASURED if not column.startswith(CONTRAST)), "token KL, nats", "tokens", "minutes", "seeds",
)  # fmt: skip
GIB = 2**30
NOT_SCORED = f"{DASH} (not scored)"
LEGEND = (
    "Intervals are 95%, over seeds and items; of one seed, over items. The best of an injury is marked ★. "
    "Text is the mean log p of a token, in nats, over texts. "
    f"`{CONTRAST}` is a difference paired by seed and item, where ours is the first on-policy method listed, with the first "
    "variant; newly damaged are items of general tasks that were right before and after the damage and are wrong after the "
    "repair; tokens, minutes and memory are the repair's."
)
_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|])")


@dataclass(frozen=True)
class Board:
    """One injury's table; every cell is text."""

    injury: str
    about: str  # what the damage did, who is above whom, and whether it cost the same
    rows: tuple[tuple[str, ...], ...]  # best first, cells as in HEADER

    @property
    def cells(self) -> list[dict[str, str]]:
        """The rows by column of HEADER."""
        return [dict(zip(HEADER, row, strict=True)) for row in self.rows]

    def has(self, column: str) -> bool:
        """Whether anything was scored in a column of HEADER; one where nothing was is left out."""
        return any(row[column] != NOT_SCORED for row in self.cells)


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
        lines = [_line(header), rule, *(_line([row[column] for column in header]) for row in board.cells)]
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
        for row in board.cells:
            table.add_row(*(escape(row[column]) for column in header))
        console.print(table)
    for title, reasons in _left_out(result):
        console.print(f"{title}:")
        for name, reason in reasons.items():
            console.print(f"  {name}: {' '.join(reason.split())}", markup=False, highlight=False, soft_wrap=True)


def _about(injury: str, result: SweepResult) -> str:
    return " ".join([f"{_damage(injury, result)}.", *said(result, injury)])


def _damage(injury: str, result: SweepResult) -> str:
    """One line: what reference and damaged model score."""
    before = result.before.get(injury, NOTHING)
    states = [(COLUMNS[name], getattr(before, name)) for name in MEASURES]
    known = [f"{what} {interval(one.reference)} → {interval(one.degraded)}" for what, one in states if one]
    return f"reference → damaged: {'; '.join(known) or 'nothing was scored'}"


def _rows(rows: Sequence[MethodRow], result: SweepResult) -> tuple[tuple[str, ...], ...]:
    """The first is marked where it stands above the second."""
    cells = [_cells(row, result) for row in rows]
    if len(rows) > 1 and standing(rows[0], result) > standing(rows[1], result):
        cells[0] = (f"{cells[0][0]} ★", *cells[0][1:])
    return tuple(cells)


def _cells(row: MethodRow, result: SweepResult) -> tuple[str, ...]:
    before = result.before.get(row.injury, NOTHING)
    measured = (_measured(row, getattr(row, name), getattr(before, name)) for name in MEASURES)
    return (
        row_name(row),
        *chain.from_iterable(measured),
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


def _measured(row: MethodRow, measured: Measured | None, before: Before | None) -> tuple[str, str, str]:
    """Score, recovered fraction and what ours has more."""
    if measured is None:
        return NOT_SCORED, NOT_SCORED, NOT_SCORED
    return interval(measured.score), _fraction(measured.fraction, before), _against(row, measured.against)


def _fraction(fraction: Estimate | None, before: Before | None) -> str:
    if fraction is not None:
        return percent_interval(fraction)
    if before is None:
        return NOT_SCORED
    raised = before.degraded.low > before.reference.high
    return f"{DASH} (raised by the damage)" if raised else f"{DASH} (damage not significant)"


def _against(row: MethodRow, against: Estimate | None) -> str:
    if against is not None:
        return interval(against)
    return DASH if row.ours else f"{DASH} (ours has no finished run of these seeds)"


def _left_out(result: SweepResult) -> list[tuple[str, Mapping[str, str]]]:
    both = (("failed", result.failed), ("impossible", result.skipped))
    return [(f"{counted(len(reasons), 'run')} {word}", reasons) for word, reasons in both if reasons]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def _markdown(text: str) -> str:
    """Text on one line, with nothing left that Markdown or HTML would act on."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", one_line(text))
