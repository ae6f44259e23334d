"""What methods cost, side by side: completion tokens trained on, seconds, peak memory, and whether the first's were spent.

A comparison at equal cost is one at equal tokens or at equal time (`recover.budget` ends a repair there). Which of the two
holds is worked out from what was spent, not from what was asked for. Pure functions of results; imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recoup.results import RecoverResult

TOLERANCE = 0.05  # of the first's cost: a budget ends with the step that spends it, and steps are that coarse
MEGABYTE = 1e6
HEADER = ("method", "tokens", "seconds", "peak memory", "equal tokens", "equal time")


@dataclass(frozen=True)
class CostRow:
    """What one repair spent, and whether that is the first's within `TOLERANCE`."""

    name: str
    num_tokens: int  # completion tokens trained on
    seconds: float
    peak_memory_bytes: int
    equal_tokens: bool
    equal_time: bool


def cost_rows(results: Mapping[str, RecoverResult]) -> tuple[CostRow, ...]:
    """A row a repair, in their order; the first is what the others are held against.

    Args:
        results: by the name that the row is to have.
    """
    if not results:
        return ()
    first = next(iter(results.values()))
    return tuple(
        CostRow(
            name=name,
            num_tokens=result.num_tokens,
            seconds=result.seconds,
            peak_memory_bytes=result.peak_memory_bytes,
            equal_tokens=_equal(result.num_tokens, first.num_tokens),
            equal_time=_equal(result.seconds, first.seconds),
        )
        for name, result in results.items()
    )


def cost_table(rows: Sequence[CostRow]) -> str:
    """The rows as Markdown whose columns are aligned, so that a terminal shows them as well."""
    cells = [HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # figures stand to the right
    rule = [f"{'-' * (width - 1)}{':' if column else '-'}" for column, width in enumerate(widths)]
    lines = [_line(row, widths) for row in cells]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]]) + "\n"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = row
    padded = [text.rjust(width) for text, width in zip(figures, widths[1:], strict=True)]
    return f"| {' | '.join([name.ljust(widths[0]), *padded])} |"


def _equal(spent: float, first: float) -> bool:
    return abs(spent - first) <= TOLERANCE * first


def _cells(row: CostRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.num_tokens:,}",
        f"{row.seconds:,.1f}",
        f"{row.peak_memory_bytes / MEGABYTE:,.0f} MB",
        "yes" if row.equal_tokens else "no",
        "yes" if row.equal_time else "no",
    )
