"""What a sweep showed, in sentences: who is above whom where the intervals tell, and whether it cost the same."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from recoup.report.comparison_words import equal
from recoup.report.leaderboard_grids import injuries, row_name
from recoup.report.words import counted, duration
from recoup.results.sweep import Measured, MethodRow, SweepResult

MEASURES: Mapping[str, Callable[[MethodRow], Measured | None]] = {
    "general score": attrgetter("general"),
    "log p of text": attrgetter("text"),
    "task score": attrgetter("task"),
}
_SECONDS_PER_MINUTE = 60


def title(result: SweepResult) -> str:
    """What was swept."""
    methods = {row.method for row in result.rows}
    hurt = len(injuries(result))
    return f"{result.name}: {counted(len(methods), 'method')} on {hurt} {'injury' if hurt == 1 else 'injuries'}"


def took(result: SweepResult) -> str:
    """How much was run."""
    runs = sum(len(row.runs) for row in result.rows)
    missing = f"; {counted(len(result.failed), 'run')} failed" if result.failed else ""
    return f"{counted(runs, 'run')} in {duration(result.seconds)}{missing}."


def said(result: SweepResult, injury: str) -> list[str]:
    """Sentences on one injury."""
    rows = [row for row in result.rows if row.injury == injury]
    ours = next((row for row in rows if row.ours), None)
    contrasts = [
        _against(what, ours, {row_name(row): measured(row) for row in rows}) for what, measured in MEASURES.items()
    ]
    return [sentence for sentence in (*contrasts, _seeds(rows), _budget(rows)) if sentence]


def _against(what: str, ours: MethodRow | None, by_row: Mapping[str, Measured | None]) -> str:
    """Ours against the others by the paired difference of a measure."""
    contrasts = {name: one.against for name, one in by_row.items() if one and one.against}
    if ours is None or not contrasts:
        return ""
    groups: Mapping[str, list[str]] = {
        "above": [name for name, difference in contrasts.items() if difference.low > 0],
        "below": [name for name, difference in contrasts.items() if difference.high < 0],
        "not told apart from": [name for name, difference in contrasts.items() if not difference.excludes_zero],
    }
    parts = [f"{words} {', '.join(names)}" for words, names in groups.items() if names]
    return f"In {what} {row_name(ours)} is {'; '.join(parts)}."


def _seeds(rows: Sequence[MethodRow]) -> str:
    """Where there is one seed, intervals are over items alone."""
    single = [row_name(row) for row in rows if row.num_seeds == 1]
    if not single:
        return ""
    who = "All rows have" if len(single) == len(rows) else f"{', '.join(single)}: with"
    return f"{who} one seed, so their intervals are over items and say nothing of another seed."


def _budget(rows: Sequence[MethodRow]) -> str:
    trained = [row for row in rows if row.num_tokens > 0]
    if len(trained) < 2:  # noqa: PLR2004  one alone has no equal
        return ""
    tokens = [row.num_tokens for row in trained]
    seconds = [_SECONDS_PER_MINUTE * row.minutes for row in trained]
    same = [name for name, spent in (("tokens", tokens), ("time", seconds)) if equal(spent)]
    verdict = f"Equal {' and '.join(same)}" if same else "Neither tokens nor time are equal"
    return (
        f"{verdict}: methods that train took {_ends(tokens, '{:,.0f}'.format)} tokens and {_ends(seconds, duration)}."
    )


def _ends(spent: Sequence[float], show: Callable[[float], str]) -> str:
    least, most = show(min(spent)), show(max(spent))
    return least if least == most else f"{least} to {most}"
