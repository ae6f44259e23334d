"""Figures of a diagnosis beside those over its layers. Call them inside `svg.drawing()`."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recoup.report.advice_grids import peak_of, score_of
from recoup.report.diagnosis_grids import position_name
from recoup.report.plots import BAND, LOOKS, half, legend_above, line_style
from recoup.report.svg import INK
from recoup.report.words import label
from recoup.results import GroupDamage, HistoryResult, PositionDamage

_HEADROOM = 1.12  # above the highest bar


def groups(damages: Sequence[GroupDamage]) -> Figure:
    """Token KL of each group of prompts, with its interval."""
    figure, axes = half("token KL, nats, with 95% interval", "")
    figure.set_figheight(1.0 + 0.36 * len(damages))
    look, ys = LOOKS["degraded"], range(len(damages))
    kl = [damage.tokens.token_kl_nats for damage in damages]
    axes.hlines(ys, [x.low for x in kl], [x.high for x in kl], color=look.color, linewidth=1.6)
    axes.plot([x.value for x in kl], ys, look.marker, color=look.color, markerfacecolor=look.face, markersize=6)
    axes.set_yticks(ys, [label(damage.group, 20) for damage in damages])
    axes.set_ylim(len(damages) - 0.5, -0.5)  # the first group stands at the top
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return figure


def positions(damages: Sequence[PositionDamage]) -> Figure:
    """Token KL of each stretch of the completion."""
    figure, axes = half("completion tokens, counted from 0", "token KL, nats")
    names = [position_name(damage) for damage in damages]
    kl = [damage.token_kl_nats for damage in damages]
    axes.bar(range(len(kl)), kl, width=0.7, color=LOOKS["degraded"].color)
    axes.set_xticks(range(len(kl)), names)
    axes.set_ylim(0, _HEADROOM * max((x for x in kl if math.isfinite(x)), default=0) or 1)
    axes.tick_params(axis="x", length=0)
    return figure


def capability(history: HistoryResult, name: str) -> Figure:
    """One capability over the checkpoints of a history; its peak is named, the student's own score is a dashed line."""
    figure, axes = half("checkpoint, oldest first", "score")
    figure.set_figheight(2.6)
    found = [(x.order, score) for x in history.checkpoints if (score := score_of(x, name)) is not None]
    orders = [order for order, _ in found]
    scores = [score.score for _, score in found]
    look = LOOKS["reference"]
    axes.fill_between(
        orders, [x.low for x in scores], [x.high for x in scores], color=look.color, alpha=BAND, linewidth=0
    )
    axes.plot(orders, [x.value for x in scores], label="checkpoint", **line_style(look, len(orders)))
    student = found[0][1].score.value - found[0][1].gain.value
    axes.axhline(student, linestyle="--", color=LOOKS["degraded"].color, linewidth=1.4, label="student")
    peak = peak_of(history, name)
    best = score_of(peak, name) if peak else None
    if peak is not None and best is not None:
        axes.plot([peak.order], [best.score.value], "*", color=LOOKS["recovered"].color, markersize=13, label="peak")
        axes.annotate(
            label(peak.checkpoint, 24), (peak.order, best.score.value), xytext=(0, 10), textcoords="offset points",
            ha="center", color=INK, fontsize=9,
        )  # fmt: skip
    axes.margins(x=0.12, y=0.25)
    legend_above(figure, axes)
    return figure
