"""The figures of the report, from result records. Call them inside `svg.drawing()`.

Each model or state keeps its colour, its marker and its line style throughout, so no curve is told by colour alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from recoup.report.partition import is_share
from recoup.report.svg import DEGRADED, FAINT, INK, RECOVERED, REFERENCE
from recoup.report.words import label
from recoup.results import Estimate, ProbeRecord, RecoverStep, TaskComparison
from recoup.results.evaluate import MEAN_LOGP

_WIDE = 10.0  # inches
_HALF = 5.0  # inches; two stand side by side
BAND = 0.18  # opacity of an interval behind its curve
_ROW_STEP = 0.22  # between the models of a task, rows
_ROW_FILL = 0.8  # share of a row that its models may take
_MOST_MARKERS = 60  # more points than this and markers hide the line


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
STATES = {name: name for name in LOOKS}
PAIR = {"reference": "teacher", "degraded": "student"}  # what a diagnosis calls them
METRICS = {MEAN_LOGP: "log p per token, nats", "logp": "log p, nats"}  # as an axis names them
PHASES = {
    "off_policy": ("off-policy (teacher writes)", Look(REFERENCE, "s", filled=False), "--"),
    "on_policy": ("on-policy (student writes)", Look(RECOVERED, "o", filled=True), "-"),
}


@dataclass(frozen=True)
class Series:
    """One model's scores on several tasks; null where it has none."""

    name: str
    look: Look
    estimates: Sequence[Estimate | None]


def scores(tasks: Sequence[TaskComparison], names: Mapping[str, str] = STATES) -> Figure:
    """Score of each model on each task, with intervals; `names` says which models, and what they are called."""
    width = _WIDE if len(names) > len(PAIR) else _HALF
    return score_figure(tasks, _series(tasks, names), width)


def score_figure(tasks: Sequence[TaskComparison], series: Sequence[Series], width: float = _WIDE) -> Figure:
    """Any models on each task; the tasks' names, metrics and kinds of score are those of `tasks`."""
    height = 0.6 + 0.21 * max(2, len(series)) * len(tasks) + 0.5 * len(_by_axis(tasks))
    figure = Figure(figsize=(width, height), layout="constrained")
    _draw_panels(figure, tasks, series)
    legend_above(figure, figure.axes[0])
    return figure


def draw_scores(
    panel: Figure | SubFigure, tasks: Sequence[TaskComparison], names: Mapping[str, str] = STATES
) -> list[Axes]:
    """A row per task, the models one below the other in it; accuracies share an axis, log-probabilities have their own."""
    return _draw_panels(panel, tasks, _series(tasks, names))


def _series(tasks: Sequence[TaskComparison], names: Mapping[str, str]) -> list[Series]:
    return [Series(name, LOOKS[model], [getattr(task, model) for task in tasks]) for model, name in names.items()]


def _by_axis(tasks: Sequence[TaskComparison]) -> dict[str, list[int]]:
    """Places of the tasks that can stand on one axis, by what it counts: shares together, each other metric for itself."""
    places: dict[str, list[int]] = {}
    for place, task in enumerate(tasks):
        places.setdefault("score" if is_share(task) else METRICS.get(task.metric, label(task.metric)), []).append(place)
    return dict(sorted(places.items(), key=lambda axis: axis[0] != "score"))


def _draw_panels(panel: Figure | SubFigure, tasks: Sequence[TaskComparison], series: Sequence[Series]) -> list[Axes]:
    axes_of = _by_axis(tasks)
    heights = [len(places) for places in axes_of.values()]
    column = panel.subplots(len(axes_of), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (counted, places) in zip(column, axes_of.items(), strict=True):
        chosen = [Series(one.name, one.look, [one.estimates[place] for place in places]) for one in series]
        _draw_rows(axes, [tasks[place] for place in places], chosen)
        axes.set_xlabel(f"{counted}, with 95% interval")
    return list(column)


def _draw_rows(axes: Axes, tasks: Sequence[TaskComparison], series: Sequence[Series]) -> None:
    step = min(_ROW_STEP, _ROW_FILL / len(series))
    for place, one in enumerate(series):
        look, offset = one.look, step * (place - (len(series) - 1) / 2)
        known = [(row + offset, estimate) for row, estimate in enumerate(one.estimates) if estimate is not None]
        ys = [y for y, _ in known]
        axes.hlines(ys, [e.low for _, e in known], [e.high for _, e in known], color=look.color, linewidth=1.6)
        values = [e.value for _, e in known]
        axes.plot(values, ys, look.marker, color=look.color, markerfacecolor=look.face, markersize=6, label=one.name)
    axes.set_yticks(range(len(tasks)), [f"{label(t.task)}\n{label(t.metric)}, n = {t.num_items:,}" for t in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)  # the first task stands at the top
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for edge in range(1, len(tasks)):
        axes.axhline(edge - 0.5, color=FAINT, linewidth=0.8)


def loss(steps: Sequence[RecoverStep]) -> Figure:
    """Loss of each step, with the switch from off-policy to on-policy."""
    figure, axes = half("optimizer step", "loss, nats per token")
    _draw_phases(axes, [(step.step, step.loss, step.phase) for step in steps])
    axes.set_ylim(bottom=0)
    _mark_switch(axes, steps)
    legend_above(figure, axes)
    return figure


def overlap(steps: Sequence[RecoverStep]) -> Figure:
    """Where it was measured: the chance that the teacher would have accepted the student's token."""
    figure, axes = half("optimizer step", "overlap of teacher and student")
    _draw_phases(axes, [(step.step, step.overlap, step.phase) for step in steps if step.overlap is not None])
    axes.set_ylim(0, 1)
    _mark_switch(axes, steps)
    legend_above(figure, axes)
    return figure


def probe_kl(looks: Sequence[ProbeRecord]) -> Figure:
    """Token KL of each look at the held-out prompts, with its interval."""
    figure, axes = half("optimizer steps taken", "held-out token KL, nats")
    steps, kl = [look.step for look in looks], [look.token_kl_nats for look in looks]
    recovered = LOOKS["recovered"]
    axes.fill_between(steps, [x.low for x in kl], [x.high for x in kl], color=recovered.color, alpha=BAND, linewidth=0)
    axes.plot(steps, [x.value for x in kl], label="student", **line_style(recovered, len(looks)))
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    return figure


def probe_cka(looks: Sequence[ProbeRecord]) -> Figure:
    """Similarity to the teacher at each look: the mean of the blocks, and the lowest of them."""
    figure, axes = half("optimizer steps taken", "held-out linear CKA, debiased")
    known = [look for look in looks if look.linear_cka]
    steps = [look.step for look in known]
    mean = [sum(look.linear_cka) / len(look.linear_cka) for look in known]
    axes.plot(steps, mean, label="mean of the layers", **line_style(LOOKS["recovered"], len(known)))
    lowest = [min(look.linear_cka) for look in known]
    axes.plot(steps, lowest, linestyle="--", label="lowest layer", **line_style(LOOKS["degraded"], len(known)))
    legend_above(figure, axes)
    return figure


def on_policy_from(steps: Sequence[RecoverStep]) -> int | None:
    """First on-policy step that follows an off-policy one; null when there was no switch."""
    off_policy = any(step.phase == "off_policy" for step in steps)
    return next((step.step for step in steps if step.phase == "on_policy"), None) if off_policy else None


def half(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure of which two stand side by side, over whole numbers."""
    figure = Figure(figsize=(_HALF, 3.3), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    return figure, axes


def line_style(look: Look, num_points: int) -> dict[str, Any]:
    """How a curve of so many points is drawn."""
    marker = look.marker if num_points <= _MOST_MARKERS else "none"
    return {"color": look.color, "marker": marker, "markerfacecolor": look.face, "markersize": 4.5, "linewidth": 1.6}


def _draw_phases(axes: Axes, points: Sequence[tuple[int, float | None, str]]) -> None:
    for phase, (words, look, dashes) in PHASES.items():
        chosen = [(x, y) for x, y, of in points if of == phase]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), linestyle=dashes, label=words, **line_style(look, len(points)))


def _mark_switch(axes: Axes, steps: Sequence[RecoverStep]) -> None:
    first = on_policy_from(steps)
    if first is not None:
        axes.axvline(first, color=INK, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"on-policy from step {first}", (first, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
            textcoords="offset points", fontsize=9,
        )  # fmt: skip


def legend_above(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The legend, where it covers no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)
