"""What a stage's result looks like in a terminal. Text from models and data is escaped."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recoup.results import (
    DegradeResult,
    DiagnoseResult,
    Estimate,
    EvaluateResult,
    ExportResult,
    HistoryResult,
    RecoverResult,
    TokenDamage,
    TriageResult,
)

if TYPE_CHECKING:
    from recoup.examine import Examined
    from recoup.structure.verify import Verification

MIB, GIB = 2**20, 2**30


def degraded(console: Console, result: DegradeResult) -> None:
    """One injury."""
    console.print(f"{escape(result.summary)}", soft_wrap=True)
    console.print(
        f"{result.num_parameters:,} parameters, {result.bits_per_weight or 16:.2f} bits per weight, {result.sparsity:.1%} zeros"
    )
    console.print(f"wrote {escape(result.checkpoint)}", soft_wrap=True)


def diagnosed(console: Console, result: DiagnoseResult) -> None:
    """Token fidelity, then a row per layer, then what else was found."""
    console.print(f"{_tokens(result.tokens)} ({result.tokens.num_tokens} tokens)", soft_wrap=True)
    moved = f", {result.num_moved_sinks} of them in one model alone" if result.num_moved_sinks else ""
    title = f"debiased linear CKA, n = {result.num_cka_tokens} tokens, sink tokens left out{moved}"
    table = Table("layer", "CKA", "ceiling", "floor", "with sink token", "relative L2", "weight drift", title=title)
    for layer in result.layers:
        low, high = layer.cka_interval or (None, None)
        between = "" if low is None else f" \\[{low:.4f}, {high:.4f}]"
        cells = (layer.ceiling, layer.floor, layer.linear_cka_all_tokens, layer.relative_l2, layer.relative_drift)
        table.add_row(str(layer.layer), f"{layer.linear_cka:.4f}{between}", *map(_number, cells))
    console.print(table)
    if result.groups:
        groups = Table("prompts", "token KL, nats", "top-1 agreement", "tokens")
        for group in result.groups:
            kl, agreement = _range(group.tokens.token_kl_nats), _range(group.tokens.top1_agreement)
            groups.add_row(escape(group.group), kl, agreement, str(group.tokens.num_tokens))
        console.print(groups)
    if result.behaviour:
        answers = Table("answers", "reference", "student", "difference")
        for change in result.behaviour:
            name = f"{change.measure.replace('_', ' ')} (n={change.num_prompts})"
            answers.add_row(name, f"{change.reference:.3f}", f"{change.student:.3f}", _range(change.difference))
        console.print(answers)
    if result.tasks:
        tasks = Table("benchmark", "reference", "student", "difference", "")
        for task in result.tasks:
            name = escape(f"{task.task} ({task.metric}, n={task.num_items})")
            scores = (f"{task.reference.value:.3f}", f"{task.degraded.value:.3f}", _range(task.damage))
            tasks.add_row(name, *scores, task.verdict)
        console.print(tasks)


def remembered(console: Console, result: HistoryResult) -> None:
    """Which checkpoint was best at what."""
    table = Table("capability", "best checkpoint", "gain over the student", "significant", "weight of its term")
    for chosen in result.chosen:
        cells = (_range(chosen.gain), "yes" if chosen.significant else "no", f"{chosen.weight:.2f}")
        table.add_row(escape(chosen.capability), escape(chosen.checkpoint), *cells)
    console.print(table)


def advised(console: Console, result: TriageResult) -> None:
    """What was tried, and the advice."""
    tried = [trial for trial in result.repairs if trial.seconds > 0]  # why the others were not is in the evidence
    if tried:
        table = Table("repair without training", "token KL, nats", "gain", "seconds", "")
        for trial in tried:
            settings = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
            scores = (_range(trial.token_kl_nats), _range(trial.gain), f"{trial.seconds:.0f}")
            table.add_row(escape(f"{trial.repair} {settings}".strip()), *scores, escape(trial.note or ""))
        console.print(table)
    if result.pilot is not None:
        pilot = result.pilot
        console.print(
            f"pilot of {pilot.steps} steps: token KL {pilot.kl_before.value:.3f} → {pilot.kl_after.value:.3f} nats; "
            f"predicted for {pilot.planned_steps} steps: recovered fraction {_range(pilot.recovered_fraction)}, "
            f"{pilot.planned_tokens:,} tokens, {pilot.planned_seconds / 60:.1f} min, {pilot.planned_memory_bytes / GIB:.1f} GiB",
            soft_wrap=True,
        )
    console.print(f"[bold]{escape(result.verdict)}[/bold]: {escape(result.reason)}", soft_wrap=True)
    for sentence in result.evidence:
        console.print(f"- {escape(sentence)}", soft_wrap=True)
    if result.command:
        console.print(f"next: {escape(result.command)}", soft_wrap=True, highlight=False)


def examined(console: Console, found: "Examined") -> None:
    """Diagnosis, history and advice."""
    diagnosed(console, found.diagnosis)
    if found.history is not None:
        remembered(console, found.history)
    if found.triage is not None:
        advised(console, found.triage)
    console.print(f"report: {escape(str(found.page))}", soft_wrap=True)


def recovered(console: Console, result: RecoverResult) -> None:
    """The repair and its cost."""
    if result.note is not None:
        console.print(f"{result.method}: {escape(result.note)}", soft_wrap=True)
    if result.first_loss_nats is not None:
        _trained(console, result)
    console.print(f"structure kept bit for bit: {escape(result.structure)}", soft_wrap=True)
    console.print(f"wrote {escape(result.checkpoint)}", soft_wrap=True)


def _trained(console: Console, result: RecoverResult) -> None:
    began = result.on_policy_from_step
    console.print(
        f"loss {result.first_loss_nats:.3f} → {result.last_loss_nats:.3f} nats per token in {result.steps} steps"
    )
    console.print(
        f"{result.num_tokens:,} tokens of {result.num_prompts} prompts, {result.seconds / 60:.1f} min, "
        f"peak {result.peak_memory_bytes / GIB:.1f} GiB"
    )
    if result.num_trained is not None:
        console.print(
            f"{result.num_trained:,} numbers trained, {(result.optimizer_bytes or 0) / GIB:.2f} GiB of AdamW moments"
        )
    console.print("never went on-policy" if began is None else f"on-policy from step {began}")


def evaluated(console: Console, result: EvaluateResult) -> None:
    """A row per benchmark, then fidelity."""
    table = Table("", "reference", "degraded", "recovered", "recovered fraction", "verdict")
    for task in result.tasks:
        fraction = "-" if task.recovered_fraction is None else _range(task.recovered_fraction)
        healed = "-" if task.recovered is None else f"{task.recovered.value:.3f}"
        name = escape(f"{task.task} ({task.metric}, n={task.num_items})")
        table.add_row(name, f"{task.reference.value:.3f}", f"{task.degraded.value:.3f}", healed, fraction, task.verdict)
    before, after = result.degraded_fidelity, result.recovered_fidelity
    table.add_section()
    table.add_row("token KL, nats", "0", _value(before, "token_kl_nats"), _value(after, "token_kl_nats"), "", "")
    table.add_row("top-1 agreement", "1", _value(before, "top1_agreement"), _value(after, "top1_agreement"), "", "")
    console.print(table)


def verified(console: Console, model: str, verification: "Verification") -> None:
    """The structure, exact or not for each kind of weight."""
    found = f"{verification.structure.describe()} ({verification.origin})"
    console.print(f"{escape(model)}: {escape(found)}", soft_wrap=True)
    if verification.counts:
        table = Table("weights", "on their structure")
        for kind, (exact, every) in verification.counts.items():
            table.add_row(escape(kind), f"{exact} of {every}")
        console.print(table)
    size = "" if verification.size_bytes is None else f"{verification.size_bytes / MIB:.1f} MiB of weights on disk, "
    console.print(
        f"{size}{verification.bits_per_weight:.2f} bits per weight, {verification.sparsity:.1%} zeros among constrained weights",
        soft_wrap=True,
    )
    console.print(
        "exact, bit for bit" if verification.exact else f"VIOLATED: {escape(', '.join(verification.violations[:5]))}",
        soft_wrap=True,
    )


def exported(console: Console, result: ExportResult) -> None:
    """What was written, and how close it reads back."""
    types = ", ".join(f"{count} × {kind}" for kind, count in result.tensor_types.items())
    size = f"{sum(result.files.values()) / MIB:.1f} MiB"
    console.print(f"{result.target}, {size}: {escape(types)}", soft_wrap=True, highlight=False)
    console.print(
        f"read back by {escape(result.consumer)}: token KL {result.token_kl_nats:.3g} nats, top-1 agreement "
        f"{result.top1_agreement:.4f}, largest logit difference {result.max_logit_difference:.3g} ({result.num_tokens} tokens)",
        soft_wrap=True,
        highlight=False,
    )
    for note in result.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    console.print(f"wrote {escape(result.output)}", soft_wrap=True)


def listed(console: Console, lines: Mapping[str, str]) -> None:
    """A line each."""
    width = max(map(len, lines))
    for name, description in lines.items():
        console.print(f"{escape(name):<{width}}  {escape(description)}", soft_wrap=True, highlight=False)


def planned_runs(console: Console, names: Sequence[str], skipped: Mapping[str, str]) -> None:
    """The runs of a sweep in their order, and those left out with the reason."""
    for name in names:
        console.print(escape(name), soft_wrap=True, highlight=False)
    for name, reason in skipped.items():
        console.print(f"left out: {escape(name)}: {escape(reason)}", soft_wrap=True, highlight=False)
    console.print(f"{len(names)} runs, {len(skipped)} left out")


def _value(damage: TokenDamage | None, field: str) -> str:
    return "-" if damage is None else f"{getattr(damage, field).value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _tokens(tokens: TokenDamage) -> str:
    return (
        f"token KL {_range(tokens.token_kl_nats)} nats, top-1 agreement {_range(tokens.top1_agreement)}, perplexity "
        f"{tokens.reference_perplexity:.2f} → {tokens.student_perplexity:.2f}"
    )


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]".replace("[", "\\[")
