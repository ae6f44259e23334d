"""A sweep's leaderboard as one HTML page, and its figure as an SVG file: methods against each other, injury by injury."""

from collections.abc import Mapping
from pathlib import Path

from recoup.report import environment, leaderboard_grids, leaderboard_words, svg
from recoup.report.leaderboard_plots import leaderboard_figure
from recoup.report.words import label
from recoup.results.sweep import SweepResult
from recoup.run_folder import RunFolder, write_text


def write_leaderboard(result: SweepResult, output: Path) -> Path:
    """Write the page of what is done of a sweep: self-contained, no scripts, no requests.

    Args:
        result: the leaderboard.
        output: the page; runs whose folders lie beside it are linked.

    Raises:
        RunFolderError: the page cannot be written.
    """
    names = [name for row in result.rows for name in row.runs]
    found = {name: environment.address(RunFolder(output.parent / name).report, output) for name in names}
    write_text(output, render(result, {name: page for name, page in found.items() if page}))
    return output


def draw_leaderboard(result: SweepResult, output: Path) -> Path:
    """Write the figure of all injuries as an SVG that follows the reader's light or dark theme.

    Raises:
        RunFolderError: the file cannot be written.
    """
    with svg.drawing():
        figure = leaderboard_figure(result, leaderboard_grids.injuries(result))
        write_text(
            output,
            svg.adaptive(figure, f"{label(result.name)}: scores of each method for each injury, with 95% intervals"),
        )
    return output


def render(result: SweepResult, pages: Mapping[str, str]) -> str:
    """The page as HTML; `pages` has the addresses of the runs' own pages."""
    injuries = leaderboard_grids.injuries(result)
    with svg.drawing():
        figures = {
            injury: svg.inline(
                leaderboard_figure(result, [injury]),
                f"injury-{place}",
                f"Scores of each method for {label(injury)}, with 95% intervals; the numbers are in the table",
            )
            for place, injury in enumerate(injuries)
        }
    return environment.render(
        "leaderboard.html",
        result=result,
        title=leaderboard_words.title(result),
        took=leaderboard_words.took(result),
        injuries=injuries,
        figures=figures,
        grids={injury: leaderboard_grids.method_grid(result, injury) for injury in injuries},
        pages={injury: leaderboard_grids.pages_of(result, injury, pages) for injury in injuries},
        said={injury: leaderboard_words.said(result, injury) for injury in injuries},
        missing={
            name: why for name, why in (("Failed", result.failed), ("Impossible, so left out", result.skipped)) if why
        },
    )
