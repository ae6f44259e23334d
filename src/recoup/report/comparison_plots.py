"""Figures of several runs. Call those of matplotlib inside `svg.drawing()`.

Each run keeps its colour, its marker and its line style on the whole page; markers and lines tell runs apart without colour.
"""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recoup.report.heat import HeatMap
from recoup.report.plots import LOOKS, Look, Series, half, legend_above, line_style
from recoup.report.shared import Compared, Shared
from recoup.report.svg import DEGRADED, INK, RECOVERED
from recoup.report.words import label
from recoup.results import DiagnoseResult, Estimate

_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "h", "*", "p", "d")
_COLORS = (RECOVERED, DEGRADED, INK)  # the reference keeps its grey to itself
_DASHES = ("-", "--", "-.", ":")
_COLUMNS = 2  # of the legend: names of runs are long


def run_look(place: int) -> Look:
    """How the run at a place is drawn: a marker of its own for as many runs as there are markers, filled, then hollow."""
    filled = place // len(_MARKERS) % 2 == 0
    return Look(_COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)], filled=filled)


def score_series(shared: Shared) -> list[Series]:
    """The reference, where the runs have one in common, and each repaired model."""
    reference = [_common([one.task_by_name[task].reference for one in shared.runs]) for task in shared.tasks]
    found = [Series("reference", LOOKS["reference"], reference)] if any(reference) else []
    for place, one in enumerate(shared.runs):
        scores = [one.task_by_name[task].recovered for task in shared.tasks]
        found.append(Series(_name(one), run_look(place), scores))
    return found


def _common(estimates: Sequence[Estimate]) -> Estimate | None:
    return estimates[0] if len({estimate.value for estimate in estimates}) == 1 else None


def probe_kl(runs: Sequence[Compared]) -> Figure:
    """Held-out token KL of each run over its steps."""
    figure, axes = half("optimizer steps taken", "held-out token KL, nats")
    for place, one in enumerate(runs):
        steps, kl = [look.step for look in one.run.probe], [look.token_kl_nats.value for look in one.run.probe]
        style = line_style(run_look(place), len(steps))
        axes.plot(steps, kl, linestyle=_DASHES[place % len(_DASHES)], label=_name(one), **style)
    axes.set_ylim(bottom=0)
    legend_above(figure, axes, columns=_COLUMNS)
    return figure


def gains(runs: Sequence[Compared]) -> Figure:
    """A point for each look: how much mean CKA rose since the run's start, and how much token KL fell."""
    figure, axes = half("gain in mean CKA since the start", "fall of the token KL, nats")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for place, one in enumerate(runs):
        start, *rest = one.run.probe
        x = [fmean(look.linear_cka) - fmean(start.linear_cka) for look in rest]
        y = [start.token_kl_nats.value - look.token_kl_nats.value for look in rest]
        look = run_look(place)
        axes.plot(x, y, look.marker, color=look.color, markerfacecolor=look.face, markersize=6, label=_name(one))
    legend_above(figure, axes, columns=_COLUMNS)
    return figure


def cka_strips(runs: Sequence[Compared]) -> HeatMap | None:
    """A strip for each diagnosis of each run, a column per layer; null where none was diagnosed."""
    states = {
        f"{one.key} {state}": [layer.linear_cka for layer in diagnosis.layers]
        for one in runs
        for state, diagnosis in _states(one)
        if diagnosis is not None and diagnosis.layers
    }
    if not states:
        return None
    width = max(map(len, states.values()))
    rows: list[list[float | None]] = [[*values, *[None] * (width - len(values))] for values in states.values()]
    lowest = min((value for row in rows for value in row if value is not None), default=0.0)
    return HeatMap(rows, tuple(states), "", "layer", (min(0.9, max(0.0, lowest)), 1.0), "like")


def _states(one: Compared) -> tuple[tuple[str, DiagnoseResult | None], ...]:
    return ("before", one.run.before), ("after", one.run.after)


def _name(one: Compared) -> str:
    return label(f"{one.key}: {one.run.name}")
