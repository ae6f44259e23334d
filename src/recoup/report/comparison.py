"""Write one HTML page of several runs beside each other: self-contained, no scripts, no requests.

Scores are compared on the tasks that every evaluated run scored on the same items; the others are named, with the reason.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from recoup.errors import DataError
from recoup.report import comparison_grids, comparison_plots, environment, plots, svg
from recoup.report.comparison_words import budget, title, where
from recoup.report.correlation import Correlation, correlate
from recoup.report.gather import gather
from recoup.report.grid import Grid
from recoup.report.heat import draw
from recoup.report.shared import Compared, Shared, shared_tasks
from recoup.run_folder import RunFolder, write_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def write_comparison(folders: Sequence[RunFolder], output: Path) -> Path:
    """Write the page of the runs in `folders`, which are called A, B, C in it, in their order.

    Args:
        folders: run folders, two at least; stages may be missing.
        output: the page; runs that have a page of their own are linked relative to it.

    Raises:
        DataError: there are fewer than two folders, or one holds no results or a malformed file.
        RunFolderError: the page cannot be written.
    """
    if len(folders) < 2:  # noqa: PLR2004  one run has nothing beside it
        raise DataError("a comparison takes two run folders at least; for one run: recoup report RUN")
    runs = tuple(
        Compared(_key(place), gather(folder), environment.address(folder.report, output))
        for place, folder in enumerate(folders)
    )
    probed = [folder for folder, one in zip(folders, runs, strict=True) if one.run.probe]
    write_text(output, render(runs, _correlations(probed)))
    return output


def render(runs: Sequence[Compared], correlations: Sequence[Correlation] = ()) -> str:
    """The page as HTML."""
    shared = shared_tasks(runs)
    return environment.render(
        "comparison.html",
        title=title(runs, shared),
        runs=runs,
        where=where,
        budget=budget(runs),
        shared=shared,
        grids=_grids(runs, shared) | _correlation_grid(correlations),
        figures=_figures(runs, shared),
    )


def _key(place: int) -> str:
    """A, B, C, and after Z the number."""
    return LETTERS[place] if place < len(LETTERS) else str(place + 1)


def _correlations(folders: Sequence[RunFolder]) -> tuple[Correlation, ...]:
    """Nothing where there are too few looks: the page shows them all the same."""
    try:
        return correlate(folders) if folders else ()
    except DataError:
        return ()


def _grids(runs: Sequence[Compared], shared: Shared) -> dict[str, Grid]:
    """Every table that there is data for, by name."""
    grids = {
        "scores": comparison_grids.score_grid(shared),
        "fractions": comparison_grids.fraction_grid(shared),
        "differences": comparison_grids.difference_grid(shared),
        "others": comparison_grids.other_grid(shared),
        "fidelity": comparison_grids.fidelity_grid(runs),
        "cka": comparison_grids.cka_grid(runs),
        "cost": comparison_grids.cost_grid(runs),
    }
    return {name: grid for name, grid in grids.items() if grid.rows}


def _correlation_grid(correlations: Sequence[Correlation]) -> dict[str, Grid]:
    return {"correlations": comparison_grids.correlation_grid(correlations)} if correlations else {}


def _figures(runs: Sequence[Compared], shared: Shared) -> dict[str, Markup]:
    """Every figure that there is data for, by name; the numbers of each are in a table."""
    figures = {}
    with svg.drawing():
        if shared.tasks:
            drawn = plots.score_figure(shared.of_first, comparison_plots.score_series(shared))
            figures["scores"] = svg.inline(drawn, "scores", "Score after the repair in each run, with 95% intervals")
        probed = [one for one in runs if len(one.run.probe) > 1]
        if probed:
            words = "Token KL on held-out prompts over the optimizer steps of each run"
            figures["probe"] = svg.inline(comparison_plots.probe_kl(probed), "probe", words)
        seen = [one for one in probed if all(look.linear_cka for look in one.run.probe)]
        if seen:
            words = "Fall of the token KL against the gain in CKA, a point for each look of each run"
            figures["gains"] = svg.inline(comparison_plots.gains(seen), "gains", words)
    strips = comparison_plots.cka_strips(runs)
    if strips:
        figures["cka"] = draw(strips, "Linear CKA of each layer with the reference, before and after each repair")
    return figures
