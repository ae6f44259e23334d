"""The figures of the report, from result records. Call them inside `svg.drawing()`.

Each model or state keeps its colour, its marker and its line style throughout, so no curve is told by colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recoup.report.svg import DEGRADED, FAINT, INK, RECOVERED, REFERENCE
from recoup.report.words import label
from recoup.results import DiagnoseResult, RecoverStep, TaskComparison

_WIDE = 10.0  # inches
_HALF = 5.4  # inches; two stand side by side
_MOST_MARKERS = 60  # more points than this and markers hide the line

DRIFT_HEADROOM = 1.1  # drift is nearly flat over the layers: the curve would lie on the frame


@dataclass(frozen=True)
class Look:
    """How one model or state is drawn."""

    color: str
    marker: str
    filled: bool

    @property
    def face(self) -> str:
        """Inside of the marker."""
        return self.color if self.filled else "none"


LOOKS = {
    "reference": Look(REFERENCE, "D", filled=True),
    "degraded": Look(DEGRADED, "s", filled=False),
    "recovered": Look(RECOVERED, "o", filled=True),
}
PHASES = {
    "off_policy": ("off-policy (teacher writes)", Look(REFERENCE, "s", filled=False), "--"),
    "on_policy": ("on-policy (student writes)", Look(RECOVERED, "o", filled=True), "-"),
}


def scores(tasks: Sequence[TaskComparison]) -> Figure:
    """Reference, degraded and recovered score of each task, with intervals."""
    figure = Figure(figsize=(_WIDE, 1.1 + 0.62 * len(tasks)), layout="constrained")
    axes = figure.add_subplot()
    draw_scores(axes, tasks)
    _legend_above(figure, axes)
    return figure


def draw_scores(axes: Axes, tasks: Sequence[TaskComparison]) -> None:
    """A row per task; the three models stand one below the other in it."""
    for offset, (model, look) in zip((-0.22, 0.0, 0.22), LOOKS.items(), strict=True):
        estimates = [(row + offset, getattr(task, model)) for row, task in enumerate(tasks)]
        known = [(y, estimate) for y, estimate in estimates if estimate is not None]
        ys = [y for y, _ in known]
        axes.hlines(ys, [e.low for _, e in known], [e.high for _, e in known], color=look.color, linewidth=1.6)
        values = [e.value for _, e in known]
        axes.plot(values, ys, look.marker, color=look.color, markerfacecolor=look.face, markersize=6, label=model)
    axes.set_yticks(range(len(tasks)), [f"{label(t.task)}\n{label(t.metric)}, n = {t.num_items:,}" for t in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)  # the first task stands at the top
    axes.set_xlabel("score, with 95% interval")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for edge in range(1, len(tasks)):
        axes.axhline(edge - 0.5, color=FAINT, linewidth=0.8)


def layer_cka(before: DiagnoseResult | None, after: DiagnoseResult | None) -> Figure:
    """Similarity of each layer to the reference: without the sink token, and with it in lighter dashes."""
    figure, axes = _half("layer", "linear CKA, debiased")
    axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
    for diagnosis, words, look in _states(before, after):
        layers = [layer.layer for layer in diagnosis.layers]
        everything = [layer.linear_cka_all_tokens for layer in diagnosis.layers]
        axes.plot(layers, [x.linear_cka for x in diagnosis.layers], label=words, **_line(look, len(layers)))
        axes.plot(
            layers, everything, "--", color=look.color, alpha=0.55, linewidth=1.2, label=f"{words}, sink included"
        )
    _legend_above(figure, axes, columns=2)
    return figure


def layer_drift(before: DiagnoseResult | None, after: DiagnoseResult | None) -> Figure:
    """How far each layer's weights lie from the reference's; a gap where shapes differ."""
    figure, axes = _half("layer", "relative weight drift")
    for diagnosis, words, look in _states(before, after):
        layers = [layer.layer for layer in diagnosis.layers]
        drift = [math.nan if x.relative_drift is None else x.relative_drift for x in diagnosis.layers]
        axes.plot(layers, drift, label=words, **_line(look, len(layers)))
    axes.set_ylim(0, axes.get_ylim()[1] * DRIFT_HEADROOM)
    _legend_above(figure, axes)
    return figure


def loss(steps: Sequence[RecoverStep]) -> Figure:
    """Loss of each step, with the switch from off-policy to on-policy."""
    figure, axes = _half("optimizer step", "loss, nats per token")
    _draw_phases(axes, [(step.step, step.loss, step.phase) for step in steps])
    axes.set_ylim(bottom=0)
    _mark_switch(axes, steps)
    _legend_above(figure, axes)
    return figure


def overlap(steps: Sequence[RecoverStep]) -> Figure:
    """Where it was measured: the chance that the teacher would have accepted the student's token."""
    figure, axes = _half("optimizer step", "overlap of teacher and student")
    _draw_phases(axes, [(step.step, step.overlap, step.phase) for step in steps if step.overlap is not None])
    axes.set_ylim(0, 1)
    _mark_switch(axes, steps)
    _legend_above(figure, axes)
    return figure


def on_policy_from(steps: Sequence[RecoverStep]) -> int | None:
    """First on-policy step that follows an off-policy one; null when there was no switch."""
    off_policy = any(step.phase == "off_policy" for step in steps)
    return next((step.step for step in steps if step.phase == "on_policy"), None) if off_policy else None


def _half(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_HALF, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    return figure, axes


def _states(before: DiagnoseResult | None, after: DiagnoseResult | None) -> list[tuple[DiagnoseResult, str, Look]]:
    states = ((before, "before repair", LOOKS["degraded"]), (after, "after repair", LOOKS["recovered"]))
    return [(diagnosis, words, look) for diagnosis, words, look in states if diagnosis is not None]


def _line(look: Look, num_points: int) -> dict[str, Any]:
    marker = look.marker if num_points <= _MOST_MARKERS else "none"
    return {"color": look.color, "marker": marker, "markerfacecolor": look.face, "markersize": 4.5, "linewidth": 1.6}


def _draw_phases(axes: Axes, points: Sequence[tuple[int, float | None, str]]) -> None:
    for phase, (words, look, dashes) in PHASES.items():
        chosen = [(x, y) for x, y, of in points if of == phase]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), linestyle=dashes, label=words, **_line(look, len(points)))


def _mark_switch(axes: Axes, steps: Sequence[RecoverStep]) -> None:
    first = on_policy_from(steps)
    if first is not None:
        axes.axvline(first, color=INK, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"on-policy from step {first}", (first, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip


def _legend_above(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
