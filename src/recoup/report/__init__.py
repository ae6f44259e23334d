"""One page that shows a run, its figures and its tables: from the run folder alone, on a machine with no GPU and no torch."""

from recoup.report.page import write_report
from recoup.report.readme import write_readme_figure
from recoup.report.table import score_table_markdown

__all__ = ["score_table_markdown", "write_readme_figure", "write_report"]
