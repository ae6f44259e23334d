"""One page that shows a run, a diagnosis, several runs or a sweep: from records alone, on a machine with no GPU and no torch."""

from recoup.report.comparison import write_comparison
from recoup.report.diagnosis import write_diagnosis
from recoup.report.leaderboard import draw_leaderboard, write_leaderboard
from recoup.report.page import write_report
from recoup.report.readme import write_readme_figure
from recoup.report.table import score_table_markdown

__all__ = [
    "draw_leaderboard",
    "score_table_markdown",
    "write_comparison",
    "write_diagnosis",
    "write_leaderboard",
    "write_readme_figure",
    "write_report",
]
