"""A plan in a terminal. Text from configs is escaped."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recoup.plan.record import PlanResult, StepTime

GIB = 2**30
MINUTE, HOUR = 60, 3600
CALIBRATED = "times were calibrated on other runs; rates are this machine's, now"


def planned(console: Console, result: PlanResult) -> None:
    """Memory by part, time by part, what would need less, and how far off the formulas were before."""
    console.print(
        f"{escape(result.name)}: {escape(result.student)}, {result.num_parameters:,} parameters, {result.num_trained:,} trained",
        soft_wrap=True,
        highlight=False,
    )
    _memory(console, result)
    _time(console, result)
    for note in result.assumptions:
        console.print(f"assumed: {escape(note)}", soft_wrap=True, highlight=False)
    if result.past:
        _past(console, result)


def _memory(console: Console, result: PlanResult) -> None:
    table = Table("memory", "when", "GiB", title="predicted")
    for part in result.parts:
        table.add_row(escape(part.name), part.phase, f"{part.num_bytes / GIB:.2f}")
    table.add_section()
    table.add_row("peak", result.peak_phase, f"{result.peak_bytes / GIB:.2f}")
    console.print(table)
    if result.fits is not None:
        verdict = "fits" if result.fits else "DOES NOT FIT"
        console.print(f"{verdict}: {result.available_bytes / GIB:.1f} GiB are free", highlight=False)
    if not result.fits and result.alternatives:
        choices = Table("settings", "peak, GiB", "fits", title="what needs less")
        for choice in result.alternatives:
            fits = "?" if choice.fits is None else "yes" if choice.fits else "no"
            choices.add_row(escape("\n".join(choice.settings)), f"{choice.peak_bytes / GIB:.2f}", fits)
        console.print(choices)


def _time(console: Console, result: PlanResult) -> None:
    rates, step = result.rates, result.step
    parts = ", ".join(f"{name} {getattr(step, name):.2g} s" for name in StepTime.model_fields)
    console.print(f"a step: {step.total:.2g} s ({parts})", soft_wrap=True, highlight=False)
    console.print(
        f"{result.steps} steps: {_duration(result.total_seconds)}, {result.completion_tokens_per_second:.0f} completion tokens/s",
        highlight=False,
    )
    console.print(
        f"on {escape(rates.device)}: {rates.gemm_flops / 1e9:,.0f} GFLOP/s, {rates.bytes_per_second / 1e9:.1f} GB/s copied",
        highlight=False,
    )


def _past(console: Console, result: PlanResult) -> None:
    table = Table(
        "run",
        "peak memory",
        "step",
        "sampling",
        "teacher",
        "student",
        title="predicted / measured before",
        caption=CALIBRATED,
    )
    for run in result.past:
        ratios = (run.peak_ratio, run.step_ratio, run.sampling_ratio, run.teacher_ratio, run.student_ratio)
        table.add_row(escape(run.name), *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)


def _duration(seconds: float) -> str:
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"
