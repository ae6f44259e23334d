"""The figure of a leaderboard. Call it inside `svg.drawing()`."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recoup.report.leaderboard_grids import NOT_SCORED, ranked, row_name
from recoup.report.plots import BAND, LOOKS, Look, legend_above
from recoup.report.svg import INK
from recoup.report.words import label
from recoup.results import Estimate
from recoup.results.sweep import Before, Measured, MethodRow, SweepResult

_WIDTH = 10.0  # inches
_ROW = 0.27  # inches
_AROUND = 0.85  # inches of a panel beside its rows
_TICKS = 5  # of an axis, at most
_ROOM = 0.6  # rows above the first and below the last
_LONGEST = 60  # characters of an injury's name
AXES = {
    "general": "general score, mean over tasks",
    "text": "log p of a token of text, nats",
    "task": "score on the task taught",
}
KINDS = {
    "on-policy": Look(LOOKS["recovered"].color, "o", filled=True),
    "baseline": Look(INK, "D", filled=False),
    "no repair": LOOKS["degraded"],
}


def leaderboard_figure(result: SweepResult, injuries: Sequence[str]) -> Figure:
    """A panel of rows for each injury: general score; beside it log p of text and its own task, where some injury has them.

    Lines are the reference and the damaged model; how far a point lies between them is what came back.
    """
    if not injuries:
        figure = Figure(figsize=(_WIDTH, 1.0))
        figure.text(0.5, 0.5, "No run of this sweep is finished.", ha="center")
        return figure
    shown = [row for row in result.rows if row.injury in injuries]
    columns = [name for name in AXES if name == "general" or any(getattr(row, name) for row in shown)]
    rows = {injury: ranked(result, injury) for injury in injuries}
    heights = [_AROUND + _ROW * len(found) for found in rows.values()]
    figure = Figure(figsize=(_WIDTH, 0.4 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(injuries), len(columns), squeeze=False, height_ratios=heights)
    for line, (injury, found) in zip(grid, rows.items(), strict=True):
        names = [label(row_name(row)) for row in found]
        before = result.before.get(injury, NOT_SCORED)
        for axes, column in zip(line, columns, strict=True):
            measured: list[Measured | None] = [getattr(row, column) for row in found]
            _panel(axes, found, [one.score if one else None for one in measured], getattr(before, column))
            axes.set_yticks(range(len(found)), names if axes is line[0] else [])
            axes.set_xlabel(AXES[column])
        if len(injuries) > 1:  # alone, it stands in the heading above
            line[0].set_title(label(injury, _LONGEST))
    legend_above(figure, grid[0, 0], columns=5)
    return figure


def _panel(
    axes: Axes,
    rows: Sequence[MethodRow],
    estimates: Sequence[Estimate | None],
    before: Before | None,
) -> None:
    if before is not None:
        for known, name, dashes in ((before.reference, "reference", "--"), (before.degraded, "degraded", ":")):
            color = LOOKS[name].color
            axes.axvspan(known.low, known.high, color=color, alpha=BAND / 2, linewidth=0)
            shown = "damaged" if name == "degraded" else name
            axes.axvline(known.value, color=color, linestyle=dashes, linewidth=1.4, label=shown)
    for kind, look in KINDS.items():
        chosen = [
            (y, found)
            for y, (row, found) in enumerate(zip(rows, estimates, strict=True))
            if found and _kind(row) == kind
        ]
        ys = [y for y, _ in chosen]
        axes.hlines(
            ys, [found.low for _, found in chosen], [found.high for _, found in chosen], color=look.color, linewidth=1.6
        )
        values = [found.value for _, found in chosen]
        axes.plot(values, ys, look.marker, color=look.color, markerfacecolor=look.face, markersize=6, label=kind)
    axes.set_ylim(len(rows) - 1 + _ROOM, -_ROOM)  # the best stands at the top
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _kind(row: MethodRow) -> str:
    if row.method == "none":
        return "no repair"
    return "on-policy" if row.method.startswith("onpolicy") else "baseline"
