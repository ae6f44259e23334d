"""The score table, as rows for the page and as Markdown for README and docs; pure functions of the evaluation."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recoup.report.words import DASH, interval, one_line, percent_interval, significant, significant_interval
from recoup.results import EvaluateResult, TaskComparison, TokenDamage

_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|])")


@dataclass(frozen=True)
class ScoreRow:
    """One row; every cell is text."""

    name: str
    detail: str
    reference: str
    degraded: str
    recovered: str
    recovered_fraction: str = ""
    verdict: str = ""
    anchor: str = ""  # where on the page its samples are


def score_rows(result: EvaluateResult, anchors: Mapping[str, str] | None = None) -> tuple[ScoreRow, ...]:
    """A row per benchmark; `anchors` says where on the page each has its samples."""
    return tuple(
        ScoreRow(
            name=task.task,
            detail=f"{task.metric}, n = {task.num_items:,}",
            reference=interval(task.reference),
            degraded=interval(task.degraded),
            recovered=interval(task.recovered) if task.recovered else DASH,
            recovered_fraction=recovered_fraction(task),
            verdict=task.verdict,
            anchor=(anchors or {}).get(task.task, ""),
        )
        for task in result.tasks
    )


def recovered_fraction(task: TaskComparison) -> str:
    """The share of the loss that came back, or why there is none."""
    if task.recovered_fraction is not None:
        return percent_interval(task.recovered_fraction)
    if task.recovered is None:
        return f"{DASH} (no repair)"
    if not task.damage_significant:
        return f"{DASH} (damage not significant)"
    return f"{DASH} (not computed)"


def fidelity_rows(degraded: TokenDamage | None, recovered: TokenDamage | None) -> tuple[ScoreRow, ...]:
    """Closeness to the reference, token by token; the reference's own column is true by definition or measured."""
    known = degraded or recovered
    if known is None:
        return ()

    def row(name: str, detail: str, reference: str, cell: Callable[[TokenDamage], str]) -> ScoreRow:
        cells = [cell(damage) if damage else DASH for damage in (degraded, recovered)]
        return ScoreRow(name, detail, reference, *cells)

    return (
        row("token KL", "nats, lower is better", "0 by definition", lambda d: significant_interval(d.token_kl_nats)),
        row("top-1 agreement", "higher is better", "1 by definition", lambda d: interval(d.top1_agreement)),
        row(
            "perplexity", "lower is better", significant(known.reference_perplexity), lambda d: significant(d.student_perplexity)
        ),
    )  # fmt: skip


def score_table_markdown(result: EvaluateResult) -> str:
    """The benchmarks and the fidelity as one GitHub-flavoured Markdown table."""
    rows = score_rows(result) + fidelity_rows(result.degraded_fidelity, result.recovered_fidelity)
    lines = [
        "| Task | Reference | Degraded | Recovered | Recovered fraction | Verdict |",
        "| :--- | ---: | ---: | ---: | ---: | :--- |",
        *(_markdown_row(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(row: ScoreRow) -> str:
    name = f"{_markdown(row.name)} ({_markdown(row.detail)})"
    cells = (row.reference, row.degraded, row.recovered, row.recovered_fraction or DASH, row.verdict or DASH)
    return f"| {' | '.join((name, *cells))} |"


def _markdown(text: str) -> str:
    """Foreign text on one line, with nothing left that Markdown or HTML would act on."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", one_line(text))
