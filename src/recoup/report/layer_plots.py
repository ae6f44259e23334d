"""Figures over the layers of a model, from diagnoses. Call them inside `svg.drawing()`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recoup.report.plots import BAND, LOOKS, Look, half, legend_above, line_style
from recoup.report.svg import INK, REFERENCE
from recoup.results import DiagnoseResult, LayerDamage

_HEADROOM = 1.1  # drift is nearly flat over the layers: the curve would lie on the frame


@dataclass(frozen=True)
class State:
    """A model that was diagnosed, and how it is called and drawn."""

    diagnosis: DiagnoseResult
    name: str
    look: Look


def repair_states(before: DiagnoseResult | None, after: DiagnoseResult | None) -> tuple[State, ...]:
    """The student before and after its repair, as far as they were diagnosed."""
    states = ((before, "before repair", LOOKS["degraded"]), (after, "after repair", LOOKS["recovered"]))
    return tuple(State(diagnosis, name, look) for diagnosis, name, look in states if diagnosis is not None)


def student_state(diagnosis: DiagnoseResult) -> tuple[State]:
    """The student, where there is no repair to compare with."""
    return (State(diagnosis, "student", LOOKS["degraded"]),)


def layer_cka(states: Sequence[State]) -> Figure:
    """Similarity of each layer to its partner: without sink tokens, and with them in lighter dashes.

    The band is the 95% interval; ceiling and floor are drawn where they were measured.
    """
    figure, axes = half("layer", "linear CKA, debiased")
    _draw_bounds(axes, states)
    for state in states:
        layers = state.diagnosis.layers
        xs, look = [layer.layer for layer in layers], state.look
        bounds = [layer.cka_interval or (math.nan, math.nan) for layer in layers]
        axes.fill_between(
            xs, [low for low, _ in bounds], [high for _, high in bounds], color=look.color, alpha=BAND, linewidth=0
        )
        axes.plot(xs, [x.linear_cka for x in layers], label=state.name, **line_style(look, len(xs)))
        everything = [layer.linear_cka_all_tokens for layer in layers]
        axes.plot(
            xs, everything, "--", color=look.color, alpha=0.55, linewidth=1.2, label=f"{state.name}, sink included"
        )
    legend_above(figure, axes, columns=2)
    return figure


def _draw_bounds(axes: Axes, states: Sequence[State]) -> None:
    """Ceiling and floor are the teacher's, so one state's are everybody's; without them, where models are equal."""
    for layers in (state.diagnosis.layers for state in states):
        if any(layer.ceiling is not None or layer.floor is not None for layer in layers):
            xs = [layer.layer for layer in layers]
            axes.plot(xs, values(layers, "ceiling"), "-.", color=REFERENCE, linewidth=1.2, label="ceiling")
            axes.plot(xs, values(layers, "floor"), ":", color=REFERENCE, linewidth=1.6, label="floor")
            return
    axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")


def bounds_sentence(states: Sequence[State]) -> str:
    """What band, ceiling and floor are, where they are drawn."""
    layers = [layer for state in states for layer in state.diagnosis.layers]
    parts = {
        "Bands are 95% intervals over prompts.": any(x.cka_interval is not None for x in layers),
        "Ceiling: the teacher against itself in another precision.": any(x.ceiling is not None for x in layers),
        "Floor: the teacher against a re-initialised model.": any(x.floor is not None for x in layers),
    }
    return " ".join(words for words, drawn in parts.items() if drawn)


def layer_drift(states: Sequence[State]) -> Figure:
    """How far each layer's weights lie from the reference's; a gap where shapes differ."""
    figure, axes = half("layer", "relative weight drift")
    for state in states:
        layers = state.diagnosis.layers
        xs = [layer.layer for layer in layers]
        axes.plot(xs, values(layers, "relative_drift"), label=state.name, **line_style(state.look, len(layers)))
    axes.set_ylim(0, axes.get_ylim()[1] * _HEADROOM)
    legend_above(figure, axes)
    return figure


def layer_distance(layers: Sequence[LayerDamage]) -> Figure:
    """What CKA cannot see: relative L2 (scale and rotation count) and Procrustes (all directions count alike)."""
    figure, axes = half("layer", "distance of hidden states")
    xs = [layer.layer for layer in layers]
    axes.plot(xs, values(layers, "relative_l2"), label="relative L2", **line_style(LOOKS["degraded"], len(xs)))
    other = Look(INK, "^", filled=False)
    axes.plot(xs, values(layers, "procrustes"), linestyle="--", label="Procrustes", **line_style(other, len(xs)))
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    return figure


def layer_rank(layers: Sequence[LayerDamage]) -> Figure:
    """Effective rank of the hidden states of both models."""
    figure, axes = half("layer", "effective rank")
    xs = [layer.layer for layer in layers]
    axes.plot(
        xs, values(layers, "teacher_rank"), linestyle="--", label="teacher", **line_style(LOOKS["reference"], len(xs))
    )
    axes.plot(xs, values(layers, "student_rank"), label="student", **line_style(LOOKS["degraded"], len(xs)))
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    return figure


def values(layers: Sequence[LayerDamage], field: str) -> list[float]:
    """A field of every layer; what was not measured is a gap."""
    found = [getattr(layer, field) for layer in layers]
    return [math.nan if value is None else value for value in found]
