"""One wide figure for a README: the scores with their intervals, and beside them what each layer lost and got back.

It stands on white, so that it reads the same in GitHub's light and dark themes. Layers show 1 − CKA, so that bars start at an
honest zero and shrink as a layer heals.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from recoup.report import plots, svg
from recoup.report.gather import Run, gather
from recoup.run_folder import RunFolder, write_text

TITLE = "Scores of the reference, degraded and recovered model with 95% intervals; layerwise loss of CKA before and after repair"


def write_readme_figure(folder: RunFolder, path: Path) -> None:
    """Write the figure to `path`, as one SVG.

    Raises:
        DataError: the run folder holds no results, or a malformed file.
        RunFolderError: `path` cannot be written.
    """
    run = gather(folder)
    with svg.drawing():
        write_text(path, svg.standalone(readme_figure(run), TITLE))


def readme_figure(run: Run) -> Figure:
    """Draw it, inside `svg.drawing()`; a stage that was not run leaves a sentence in its place."""
    num_tasks = len(run.evaluation.tasks) if run.evaluation else 0
    figure = Figure(
        figsize=(10.8, max(3.9, 1.5 + 0.62 * num_tasks)),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        facecolor="white",
    )
    panels = figure.add_gridspec(1, 2, width_ratios=(1.35, 1))
    _draw_scores(figure.add_subfigure(panels[0, 0]), run)
    _draw_layers(figure.add_subfigure(panels[0, 1]), run)
    return figure


def _draw_scores(panel: SubFigure, run: Run) -> None:
    if run.evaluation is None or not run.evaluation.tasks:
        _say(panel.add_subplot(), "No benchmark was evaluated.")
        return
    first, *_ = plots.draw_scores(panel, run.evaluation.tasks)
    first.set_title("Benchmarks")
    panel.legend(*first.get_legend_handles_labels(), loc="outside lower left", ncols=3)


def _draw_layers(panel: SubFigure, run: Run) -> None:
    states = ((run.before, "before repair", svg.DEGRADED), (run.after, "after repair", svg.RECOVERED))
    strips = panel.subplots(2, 1, sharex=True, sharey=True)
    for axes, (diagnosis, words, color) in zip(strips, states, strict=True):
        if diagnosis is None or not diagnosis.layers:
            _say(axes, f"Not diagnosed {words}.")
            continue
        worst = min(diagnosis.layers, key=lambda layer: layer.linear_cka)
        axes.bar([x.layer for x in diagnosis.layers], [1 - x.linear_cka for x in diagnosis.layers], color=color)
        axes.set_title(f"{words}: lowest CKA {worst.linear_cka:.3f} at layer {worst.layer}")
        axes.set_ylabel("1 − CKA")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
    strips[-1].set_xlabel("layer")


def _say(axes: Axes, sentence: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes)
