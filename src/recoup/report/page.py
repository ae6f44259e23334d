"""Write a run's one HTML page: self-contained, no scripts, no requests."""

from pathlib import Path

from markupsafe import Markup

from recoup.report import environment, items, layer_plots, plots, svg
from recoup.report.gather import Run, gather
from recoup.report.grid import Grid
from recoup.report.headline import headline
from recoup.report.story import story
from recoup.report.table import fidelity_rows, score_rows
from recoup.report.words import duration, flatten, gibibytes
from recoup.run_folder import RunFolder, write_text


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
    degraded, recovered = run.fidelity
    samples = items.samples(run)
    anchors = {task: f"samples-{place}" for place, task in enumerate(samples)}
    return environment.render(
        "template.html",
        run=run,
        title=headline(run).title,
        story=story(run),
        score_rows=score_rows(run.evaluation, anchors) if run.evaluation else (),
        grids=_grids(run),
        samples=samples,
        anchors=anchors,
        fidelity=degraded or recovered,
        fidelity_rows=fidelity_rows(degraded, recovered),
        figures=_figures(run),
        bounds=layer_plots.bounds_sentence(layer_plots.repair_states(run.before, run.after)),
        on_policy_from=plots.on_policy_from(run.steps),
        costs=_costs(run),
        stages=_stage_times(run),
        provenance=flatten(run.provenance),
    )


def _grids(run: Run) -> dict[str, Grid]:
    """What is told item by item, where the items are there."""
    parts, further = items.items_of(run), items.further_grid(run.scores)
    return ({"items": items.partition_grid(parts)} if parts else {}) | ({"further": further} if further else {})


def _figures(run: Run) -> dict[str, Markup]:
    """Every figure that there is data for, by name."""
    figures = {}
    states = layer_plots.repair_states(run.before, run.after)
    with svg.drawing():
        if run.evaluation and run.evaluation.tasks:
            title = "Score of each model on each benchmark, with 95% intervals; the numbers are in the table of scores"
            figures["scores"] = svg.inline(plots.scores(run.evaluation.tasks), "scores", title)
        if states:
            title = "Linear CKA of each layer with the reference, before and after repair"
            figures["cka"] = svg.inline(layer_plots.layer_cka(states), "cka", title)
        if any(layer.relative_drift is not None for state in states for layer in state.diagnosis.layers):
            title = "Relative weight drift of each layer from the reference, before and after repair"
            figures["drift"] = svg.inline(layer_plots.layer_drift(states), "drift", title)
        figures |= _curves(run)
    return figures


def _curves(run: Run) -> dict[str, Markup]:
    """What was measured over the optimizer steps."""
    figures = {}
    if run.steps:
        figures["loss"] = svg.inline(plots.loss(run.steps), "loss", "Loss of each optimizer step")
    if run.probe:
        title = "Token KL to the teacher on held-out prompts, over the optimizer steps"
        figures["probe_kl"] = svg.inline(plots.probe_kl(run.probe), "probe-kl", title)
    if any(look.linear_cka for look in run.probe):
        title = (
            "Linear CKA with the teacher on held-out prompts, mean and lowest of the layers, over the optimizer steps"
        )
        figures["probe_cka"] = svg.inline(plots.probe_cka(run.probe), "probe-cka", title)
    if any(step.overlap is not None for step in run.steps):
        title = "Overlap of teacher and student on student samples, over the optimizer steps"
        figures["overlap"] = svg.inline(plots.overlap(run.steps), "overlap", title)
    return figures


def _costs(run: Run) -> dict[str, str]:
    """What the repair cost; empty when it was not run."""
    if run.recovery is None:
        return {}
    costs = {
        "method": run.recovery.method,
        "optimizer steps": f"{run.recovery.steps:,}",
        "completion tokens trained on": f"{run.recovery.num_tokens:,}",
        "prompts": f"{run.recovery.num_prompts:,}",
        "time": duration(run.recovery.seconds),
        "peak memory": gibibytes(run.recovery.peak_memory_bytes),
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
