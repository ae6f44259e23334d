"""Evidence made by hand."""

from typing import Any

from recoup.results import (
    DiagnoseResult,
    Estimate,
    GroupDamage,
    LayerDamage,
    Pilot,
    RepairTrial,
    TaskComparison,
    TokenDamage,
)
from recoup.triage.decide import Evidence


def around(value: float, half: float = 0.0) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def tokens(kl: float, half: float = 0.0) -> TokenDamage:
    return TokenDamage(
        num_prompts=8, num_tokens=512, token_kl_nats=around(kl, half), top1_agreement=around(0.7),
        reference_perplexity=2.0, student_perplexity=3.0,
    )  # fmt: skip


def diagnosis(kl: float, half: float = 0.0, **more: Any) -> DiagnoseResult:
    layer = LayerDamage(
        layer=1, linear_cka=0.8, linear_cka_all_tokens=0.99, relative_drift=0.1, ceiling=0.999, floor=0.2
    )
    fields: dict[str, Any] = {
        "teacher": "base",
        "student": "hurt",
        "layers": (layer,),
        "num_cka_tokens": 500,
        "seconds": 1.0,
    }
    return DiagnoseResult(tokens=tokens(kl, half), **(fields | more))


def group(name: str, kl: float, half: float = 0.0) -> GroupDamage:
    return GroupDamage(group=name, tokens=tokens(kl, half), mean_cka=0.9)


def task(name: str, damage: float, *, significant: bool) -> TaskComparison:
    return TaskComparison(
        task=name, metric="acc", num_items=100, reference=around(0.6), degraded=around(0.6 + damage), recovered=None,
        damage=around(damage), gain=None, remaining=None, recovered_fraction=None, damage_significant=significant,
        verdict="damaged" if significant else "unharmed",
    )  # fmt: skip


def trial(repair: str, before: float, after: float, *, half: float = 0.0, **more: Any) -> RepairTrial:
    fields: dict[str, Any] = {"settings": {}, "structure": "none", "checkpoint": None, "seconds": 2.0}
    return RepairTrial(repair=repair, token_kl_nats=around(after), gain=around(before - after, half), **(fields | more))


def pilot(fraction: float, half: float = 0.2, before: float = 1.0) -> Pilot:
    return Pilot(
        steps=6, num_tokens=3000, kl_before=around(before), kl_after=around(0.8 * before),
        recovered_fraction=around(fraction, half), planned_steps=60, planned_tokens=30000, planned_seconds=300.0,
        planned_memory_bytes=2**32, seconds=40.0,
    )  # fmt: skip


def evidence(kl: float, **more: Any) -> Evidence:
    """Of a student whose context-free yardstick is 4 nats."""
    fields: dict[str, Any] = {"diagnosis": diagnosis(kl), "student_kl": around(kl), "context_free_kl": 4.0}
    return Evidence(**(fields | more))
