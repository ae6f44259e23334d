"""Write a run's one HTML page: self-contained, no scripts, no requests; jinja2 escapes all that models and data wrote."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recoup.report import plots, svg
from recoup.report.gather import Run, gather
from recoup.report.headline import headline
from recoup.report.table import fidelity_rows, score_rows
from recoup.report.words import clean, duration, number
from recoup.run_folder import RunFolder, write_text

_GIBIBYTE = 2**30


def write_report(folder: RunFolder) -> Path:
    """Write the page from what the run folder holds; a stage that was not run is said to be missing.

    Raises:
        DataError: the run folder holds no results, or a malformed file.
        RunFolderError: the page cannot be written.
    """
    write_text(folder.report, render(gather(folder)))
    return folder.report


def render(run: Run) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters["number"] = number
    degraded, recovered = run.fidelity
    return environment.get_template("template.html").render(
        run=run,
        headline=headline(run),
        score_rows=score_rows(run.evaluation) if run.evaluation else (),
        fidelity=degraded or recovered,
        fidelity_rows=fidelity_rows(degraded, recovered),
        figures=_figures(run),
        on_policy_from=plots.on_policy_from(run.steps),
        costs=_costs(run),
        stages=_stage_times(run),
        provenance=_flatten(run.provenance),
    )


def _clean(value: object) -> object:
    """Applied to every value the template prints, before it is escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figures(run: Run) -> dict[str, Markup]:
    """Every figure that there is data for, by name."""
    figures = {}
    with svg.drawing():
        if run.evaluation and run.evaluation.tasks:
            title = "Score of each model on each benchmark, with 95% intervals; the numbers are in the table of scores"
            figures["scores"] = svg.inline(plots.scores(run.evaluation.tasks), "scores", title)
        if run.before or run.after:
            title = "Linear CKA of each layer with the reference, before and after repair"
            figures["cka"] = svg.inline(plots.layer_cka(run.before, run.after), "cka", title)
        if any(x.relative_drift is not None for state in (run.before, run.after) if state for x in state.layers):
            title = "Relative weight drift of each layer from the reference, before and after repair"
            figures["drift"] = svg.inline(plots.layer_drift(run.before, run.after), "drift", title)
        if run.steps:
            figures["loss"] = svg.inline(plots.loss(run.steps), "loss", "Loss of each optimizer step")
        if any(step.overlap is not None for step in run.steps):
            title = "Overlap of teacher and student on student samples, over the optimizer steps"
            figures["overlap"] = svg.inline(plots.overlap(run.steps), "overlap", title)
    return figures


def _costs(run: Run) -> dict[str, str]:
    """What the repair cost; empty when it was not run."""
    if run.recovery is None:
        return {}
    costs = {
        "optimizer steps": f"{run.recovery.steps:,}",
        "completion tokens trained on": f"{run.recovery.num_tokens:,}",
        "prompts": f"{run.recovery.num_prompts:,}",
        "time": duration(run.recovery.seconds),
        "peak memory": f"{run.recovery.peak_memory_bytes / _GIBIBYTE:.2f} GiB",
    }
    if run.steps:
        costs["time sampling completions"] = duration(sum(step.seconds_sampling for step in run.steps))
        costs["time scoring by the teacher"] = duration(sum(step.seconds_teacher for step in run.steps))
        costs["time training the student"] = duration(sum(step.seconds_student for step in run.steps))
    return costs


def _stage_times(run: Run) -> dict[str, str]:
    """How long each stage took, for those that were run."""
    stages = {f"degrade: {injury.method}": injury.seconds for injury in run.injuries}
    results = {
        "diagnose before": run.before,
        "recover": run.recovery,
        "diagnose after": run.after,
        "evaluate": run.evaluation,
    }
    stages |= {name: result.seconds for name, result in results.items() if result is not None}
    return {name: duration(seconds) for name, seconds in stages.items()} | {"total": duration(sum(stages.values()))}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of dotted names."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: object) -> str:
    words = {None: "unknown", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
