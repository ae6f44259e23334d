"""What was lost and where, as tables; pure functions of the diagnosis."""

from collections.abc import Sequence

from recoup.report.grid import Grid, known, without_empty_columns
from recoup.report.words import DASH, interval, number, percent, percent_interval, significant, significant_interval
from recoup.results import (
    BehaviourChange,
    DiagnoseResult,
    GroupDamage,
    LayerDamage,
    PositionDamage,
    TaskComparison,
    TokenDamage,
)

_MOST_DIMS = 6  # massive dimensions that are named
MEASURES = {
    "completion_tokens": "length, tokens",
    "ended": "stopped by itself",
    "repetition": "repeated 4-grams",
    "refused": "refused, where it should",
    "harmless_refused": "refused, where it should not",
    "valid_json": "valid JSON, where asked for",
    "valid_tool_call": "valid tool call, where asked for",
}


def group_grid(groups: Sequence[GroupDamage], whole: TokenDamage) -> Grid:
    """A row per group of prompts, and all together last."""
    rows = [_group_row(x.group, x.tokens, x.mean_cka) for x in groups]
    columns = (
        "Group",
        "Token KL, nats",
        "Top-1 agreement",
        "Perplexity, teacher → student",
        "Mean CKA",
        "Prompts",
        "Tokens",
    )
    grid = Grid("By group of prompts, with 95% intervals", columns, (*rows, _group_row("all", whole, None)))
    return without_empty_columns(grid)


def _group_row(name: str, tokens: TokenDamage, mean_cka: float | None) -> tuple[str, ...]:
    return (
        name,
        significant_interval(tokens.token_kl_nats),
        interval(tokens.top1_agreement),
        perplexities(tokens),
        known(mean_cka),
        f"{tokens.num_prompts:,}",
        f"{tokens.num_tokens:,}",
    )


def perplexities(tokens: TokenDamage) -> str:
    """Teacher → student."""
    return f"{significant(tokens.reference_perplexity)} → {significant(tokens.student_perplexity)}"


def position_name(position: PositionDamage) -> str:
    """First and last token of a bin, as `4–15`."""
    return str(position.start) if position.end == position.start + 1 else f"{position.start}–{position.end - 1}"


def position_grid(positions: Sequence[PositionDamage]) -> Grid:
    """A row per stretch of the completion."""
    rows = tuple(
        (position_name(x), significant(x.token_kl_nats), known(x.mean_cka), f"{x.num_tokens:,}") for x in positions
    )
    columns = ("Completion tokens", "Token KL, nats", "Mean CKA", "Tokens")
    return without_empty_columns(Grid("By place in the completion, counted from 0", columns, rows))


def task_grid(tasks: Sequence[TaskComparison]) -> Grid:
    """A row per benchmark."""
    rows = tuple(
        (
            f"{x.task} ({x.metric}, n = {x.num_items:,})",
            interval(x.reference),
            interval(x.degraded),
            interval(x.damage),
            "damaged" if x.damage_significant else "within noise",
        )
        for x in tasks
    )
    columns = ("Benchmark", "Teacher", "Student", "Student − teacher", "Holm-corrected")
    return Grid("Benchmarks, paired by item, with 95% intervals", columns, rows, words=(4,))


def behaviour_grid(changes: Sequence[BehaviourChange]) -> Grid:
    """A row per way of answering."""
    columns = ("Answers", "Teacher", "Student", "Student − teacher", "Difference", "Prompts")
    rows = tuple(_behaviour_row(change) for change in changes)
    caption = "How each model answers by itself, greedily; shares in percent, their differences in percentage points"
    return Grid(caption, columns, rows, words=(4,))


def _behaviour_row(change: BehaviourChange) -> tuple[str, ...]:
    told = "changed" if change.difference.excludes_zero else "within noise"
    name, prompts = MEASURES[change.measure], f"{change.num_prompts:,}"
    if change.measure == "completion_tokens":
        pair = number(change.reference, 1), number(change.student, 1)
        return (name, *pair, significant_interval(change.difference), told, prompts)
    return (
        name,
        percent(change.reference),
        percent(change.student),
        percent_interval(change.difference),
        told,
        prompts,
    )


def layer_grid(layers: Sequence[LayerDamage]) -> Grid:
    """Every number of every layer; columns in which nothing was measured are left out, and partners of the same number."""
    moved = any(x.teacher_layer not in (None, x.layer) for x in layers)
    columns = (
        "Layer", "Teacher's layer", "CKA", "95% interval", "CKA, sink included", "CKA, massive dimensions left out", "Ceiling",
        "Floor", "Relative L2", "Procrustes", "Rank, teacher", "Rank, student", "Weight drift", "Attention drift",
        "Feed-forward drift", "Massive dimensions", "Their share of variance",
    )  # fmt: skip
    grid = Grid("Each layer of the student against its partner", columns, tuple(_layer_row(x, moved) for x in layers))
    return without_empty_columns(grid)


def _layer_row(x: LayerDamage, moved: bool) -> tuple[str, ...]:
    bounds = DASH if x.cka_interval is None else f"{number(x.cka_interval[0])} to {number(x.cka_interval[1])}"
    massive = ", ".join(str(dim) for dim in x.massive_dims[:_MOST_DIMS])
    more = f" and {len(x.massive_dims) - _MOST_DIMS} more" if len(x.massive_dims) > _MOST_DIMS else ""
    return (
        str(x.layer),
        str(x.teacher_layer) if moved and x.teacher_layer is not None else DASH,
        known(x.linear_cka),
        bounds,
        known(x.linear_cka_all_tokens),
        *(known(value) for value in (x.cka_without_massive, x.ceiling, x.floor, x.relative_l2, x.procrustes)),
        *(known(rank, significant) for rank in (x.teacher_rank, x.student_rank)),
        *(known(drift) for drift in (x.relative_drift, x.attention_drift, x.ffn_drift)),
        f"{massive}{more}" or DASH,
        known(x.massive_share, percent),
    )


def head_grid(layers: Sequence[LayerDamage]) -> Grid:
    """Drift of each query head, layer by layer."""
    num_heads = max(len(layer.head_drift) for layer in layers)
    rows = tuple(
        (
            str(layer.layer),
            *(known(x) for x in layer.head_drift),
            *(DASH for _ in range(num_heads - len(layer.head_drift))),
        )
        for layer in layers
    )
    return Grid("Drift of each query head's output", ("Layer", *(f"head {i}" for i in range(num_heads))), rows)


def map_grid(diagnosis: DiagnoseResult) -> Grid:
    """The layer by layer map in numbers."""
    rows = tuple((str(i), *(known(x, _two_digits) for x in row)) for i, row in enumerate(diagnosis.cka_map))
    columns = ("Student \\ teacher", *(str(i) for i in range(len(diagnosis.cka_map[0]))))
    return Grid("Debiased linear CKA of every student layer with every teacher layer", columns, rows)


def _two_digits(value: float) -> str:
    return number(value, 2)
