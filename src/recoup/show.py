"""What a stage's result looks like in a terminal. Text from models and data is escaped."""

from collections.abc import Mapping
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
    RecoverResult,
    TokenDamage,
)

if TYPE_CHECKING:
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
    """Token fidelity, then a row per layer."""
    tokens = result.tokens
    console.print(
        f"token KL {_range(tokens.token_kl_nats)} nats, top-1 agreement {_range(tokens.top1_agreement)}, perplexity "
        f"{tokens.reference_perplexity:.2f} → {tokens.student_perplexity:.2f} ({tokens.num_tokens} tokens)",
        soft_wrap=True,
    )
    table = Table(
        "layer",
        "CKA",
        "CKA with sink token",
        "weight drift",
        title=f"debiased linear CKA, n = {result.num_cka_tokens} tokens",
    )
    for layer in result.layers:
        drift = "-" if layer.relative_drift is None else f"{layer.relative_drift:.4f}"
        table.add_row(str(layer.layer), f"{layer.linear_cka:.4f}", f"{layer.linear_cka_all_tokens:.4f}", drift)
    console.print(table)


def recovered(console: Console, result: RecoverResult) -> None:
    """The repair and its cost."""
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
    console.print(f"structure kept bit for bit: {escape(result.structure)}", soft_wrap=True)
    console.print(f"wrote {escape(result.checkpoint)}", soft_wrap=True)


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


def _value(damage: TokenDamage | None, field: str) -> str:
    return "-" if damage is None else f"{getattr(damage, field).value:.3f}"


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]".replace("[", "\\[")
