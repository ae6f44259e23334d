"""A table of text, as a page shows it, and how numbers stand in its cells."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recoup.report.words import DASH, interval, number
from recoup.results import Estimate


@dataclass(frozen=True)
class Grid:
    """Rows of text; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = ()  # columns that hold words, not numbers


def known(value: float | None, show: Callable[[float], str] = number) -> str:
    """A number, or a dash where it was not measured."""
    return DASH if value is None or math.isnan(value) else show(value)


def known_interval(estimate: Estimate | None, show: Callable[[Estimate], str] = interval) -> str:
    """An estimate, or a dash where it was not measured."""
    return DASH if estimate is None or math.isnan(estimate.value) else show(estimate)


def without_empty_columns(grid: Grid) -> Grid:
    """Leave out columns in which nothing was measured."""
    kept = [i for i in range(len(grid.columns)) if i == 0 or any(row[i] != DASH for row in grid.rows)]

    def pick(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cells[i] for i in kept)

    words = tuple(place for place, i in enumerate(kept) if i in grid.words)
    return Grid(grid.caption, pick(grid.columns), tuple(pick(row) for row in grid.rows), words)
