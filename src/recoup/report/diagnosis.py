"""Write a diagnosis's one HTML page: self-contained, no scripts, no requests; its end names what was not measured."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from recoup.report import (
    advice_grids,
    diagnosis_grids,
    diagnosis_plots,
    diagnosis_words,
    environment,
    layer_plots,
    plots,
    svg,
)
from recoup.report.gather import Diagnosis, gather_diagnosis
from recoup.report.grid import Grid
from recoup.report.heat import HeatMap, draw
from recoup.report.words import label
from recoup.results import DiagnoseResult, HistoryResult, LayerDamage, TriageResult
from recoup.run_folder import write_text

_MOST_TOKENS = 6  # changed tokens that are shown unasked: a telephone's screens are short


def write_diagnosis(folder: Path) -> Path:
    """Write `index.html` from what the folder of a diagnosis holds.

    Args:
        folder: `result.json` of the diagnosis; `triage/result.json` and `history/result.json` where they were made.

    Raises:
        DataError: there is no diagnosis, or a malformed file.
        RunFolderError: the page cannot be written.
    """
    page = folder / "index.html"
    write_text(page, render(gather_diagnosis(folder)))
    return page


def render(diagnosis: Diagnosis) -> str:
    """The page as HTML."""
    result = diagnosis.result
    return environment.render(
        "diagnosis.html",
        result=result,
        triage=diagnosis.triage,
        history=diagnosis.history,
        title=diagnosis_words.title(diagnosis),
        tiles=diagnosis_words.tiles(result),
        lowest=diagnosis_words.lowest_layer(result.layers) if result.layers else "",
        moved=diagnosis_words.moved_sinks(result),
        bounds=layer_plots.bounds_sentence(layer_plots.student_state(result)),
        map_sentence=diagnosis_words.map_sentence(result),
        how_to_read=diagnosis_words.HOW_TO_READ_CKA,
        left_out=diagnosis_words.left_out(diagnosis),
        grids=_grids(result) | _advice(diagnosis.triage) | _past(diagnosis.history),
        figures=_figures(result),
        capabilities=_capability_figures(diagnosis.history),
        pilot=advice_grids.pilot_pairs(diagnosis.triage.pilot) if diagnosis.triage and diagnosis.triage.pilot else {},
        past_sentence=advice_grids.past_sentence(diagnosis.triage.past)
        if diagnosis.triage and diagnosis.triage.past
        else "",
        terms=advice_grids.terms_yaml(diagnosis.history) if diagnosis.history else "",
        most_tokens=_MOST_TOKENS,
    )


def _grids(result: DiagnoseResult) -> dict[str, Grid]:
    """Every table of the diagnosis that there is data for, by name."""
    grids = {}
    if result.groups:
        grids["groups"] = diagnosis_grids.group_grid(result.groups, result.tokens)
    if result.positions:
        grids["positions"] = diagnosis_grids.position_grid(result.positions)
    if result.tasks:
        grids["tasks"] = diagnosis_grids.task_grid(result.tasks)
    if result.layers:
        grids["layers"] = diagnosis_grids.layer_grid(result.layers)
    if any(layer.head_drift for layer in result.layers):
        grids["heads"] = diagnosis_grids.head_grid(result.layers)
    if result.cka_map:
        grids["map"] = diagnosis_grids.map_grid(result)
    if result.behaviour:
        grids["behaviour"] = diagnosis_grids.behaviour_grid(result.behaviour)
    return grids


def _advice(triage: TriageResult | None) -> dict[str, Grid]:
    grids = {}
    if triage and triage.repairs:
        grids["repairs"] = advice_grids.repair_grid(triage.repairs)
    if triage and triage.past:
        grids["past"] = advice_grids.past_grid(triage.past)
    return grids


def _past(history: HistoryResult | None) -> dict[str, Grid]:
    grids = {}
    if history and history.checkpoints:
        grids["history"] = advice_grids.history_grid(history)
    if history and history.chosen:
        grids["chosen"] = advice_grids.chosen_grid(history)
    return grids


def _figures(result: DiagnoseResult) -> dict[str, Markup]:
    """Every figure of the diagnosis that there is data for, by name; the numbers of each are in a table."""
    figures = {}
    with svg.drawing():
        if result.groups:
            title = "Token KL of each group of prompts, with 95% intervals"
            figures["groups"] = svg.inline(diagnosis_plots.groups(result.groups), "groups", title)
        if result.positions:
            title = "Token KL by place in the completion"
            figures["positions"] = svg.inline(diagnosis_plots.positions(result.positions), "positions", title)
        if result.tasks:
            title = "Score of teacher and student on each benchmark, with 95% intervals"
            figures["tasks"] = svg.inline(plots.scores(result.tasks, plots.PAIR), "tasks", title)
        figures |= _layer_figures(result)
    if _has(result.layers, "attention_drift", "ffn_drift", "head_drift"):
        title = "Relative drift of what attention, feed-forward part and each head put out, by layer"
        figures["drift"] = draw(_drift_map(result.layers), title)
    if result.cka_map:
        title = "Debiased linear CKA of every student layer with every teacher layer"
        numbers = tuple(str(i) for i in range(len(result.cka_map)))
        figures["map"] = draw(
            HeatMap(result.cka_map, numbers, "student layer", "teacher layer", (0, 1), "like", square=True), title
        )
    return figures


def _layer_figures(result: DiagnoseResult) -> dict[str, Markup]:
    """Curves over the layers; called inside `svg.drawing()`."""
    layers, student = result.layers, layer_plots.student_state(result)
    figures = {}
    if layers:
        title = (
            "Linear CKA of each student layer with its partner, with its 95% interval, ceiling and floor where measured"
        )
        figures["cka"] = svg.inline(layer_plots.layer_cka(student), "cka", title)
    if _has(layers, "relative_drift"):
        title = "Relative weight drift of each layer from the teacher"
        figures["weights"] = svg.inline(layer_plots.layer_drift(student), "weights", title)
    if _has(layers, "relative_l2", "procrustes"):
        title = "Relative L2 and Procrustes distance of each layer's hidden states from the teacher's"
        figures["distance"] = svg.inline(layer_plots.layer_distance(layers), "distance", title)
    if _has(layers, "teacher_rank", "student_rank"):
        title = "Effective rank of each layer's hidden states, teacher and student"
        figures["rank"] = svg.inline(layer_plots.layer_rank(layers), "rank", title)
    return figures


def _has(layers: Sequence[LayerDamage], *fields: str) -> bool:
    """Whether some layer has one of the fields; an empty tuple is nothing."""
    return any(getattr(layer, field) not in (None, ()) for layer in layers for field in fields)


def _drift_map(layers: Sequence[LayerDamage]) -> HeatMap:
    """Attention, feed-forward part, then every head; a column per layer.

    The scale ends at 1, a difference as large as the teacher's own output: one head far beyond would pale all others.
    """
    num_heads = max(len(layer.head_drift) for layer in layers)
    rows: list[list[float | None]] = [[x.attention_drift for x in layers], [x.ffn_drift for x in layers]]
    rows += [[x.head_drift[i] if i < len(x.head_drift) else None for x in layers] for i in range(num_heads)]
    names = ("attention", "feed-forward", *(f"head {i}" for i in range(num_heads)))
    top = max((value for row in rows for value in row if value is not None), default=0.0)
    return HeatMap(rows, names, "", "layer", (0.0, min(top, 1.0)), "unlike")


def _capability_figures(history: HistoryResult | None) -> dict[str, Markup]:
    """A figure per capability of the history, by its caption."""
    if history is None:
        return {}
    with svg.drawing():
        return {
            advice_grids.peak_sentence(history, name): svg.inline(
                diagnosis_plots.capability(history, name), f"history-{i}", f"{label(name)} by checkpoint"
            )
            for i, name in enumerate(advice_grids.capabilities(history))
        }
