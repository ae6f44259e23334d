"""One page that shows a run or a diagnosis: from its folder alone, on a machine with no GPU and no torch."""

from recoup.report.diagnosis import write_diagnosis
from recoup.report.page import write_report
from recoup.report.readme import write_readme_figure
from recoup.report.table import score_table_markdown

__all__ = ["score_table_markdown", "write_diagnosis", "write_readme_figure", "write_report"]
