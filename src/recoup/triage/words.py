"""What the verdict rests on, a sentence each."""

from collections.abc import Iterator

from recoup.results import DiagnoseResult, Estimate, PastPrediction, Pilot, RepairTrial
from recoup.triage.decide import LARGEST_BASE_SHARE, MIXES, Evidence, best, is_answer, regained

GIB = 2**30


def sentences(evidence: Evidence) -> tuple[str, ...]:
    """The evidence: words, benchmarks, layers, repairs, pilot, and how far to trust it."""
    return (
        *_of_tokens(evidence),
        *_of_tasks(evidence.diagnosis),
        *_of_layers(evidence.diagnosis),
        *_of_repairs(evidence.repairs),
        *_of_pilot(evidence.pilot, evidence.broke_down),
        *(_of_past(evidence.past) if evidence.pilot else ()),
    )


def _of_tokens(evidence: Evidence) -> Iterator[str]:
    tokens = evidence.diagnosis.tokens
    yield (
        f"Token KL to the teacher is {_range(tokens.token_kl_nats)} nats over {tokens.num_tokens} tokens of {tokens.num_prompts} "
        f"prompts; both find the same token likeliest in {tokens.top1_agreement.value:.0%} of them."
    )
    if evidence.repairs or evidence.pilot:  # else nothing was scored
        kept = 1 - evidence.student_kl.value / evidence.context_free_kl
        yield (
            f"On the prompts that repairs are scored on it is {_range(evidence.student_kl)} nats, where a predictor that "
            f"ignores the context would be at {evidence.context_free_kl:.2f}: {max(0.0, kept):.0%} of what the context tells is "
            "still there."
        )
    worst = max(evidence.diagnosis.groups, key=lambda group: group.tokens.token_kl_nats.value, default=None)
    if worst is not None:
        yield f"The worst group of prompts is {worst.group}, at {_range(worst.tokens.token_kl_nats)} nats."


def _of_tasks(diagnosis: DiagnoseResult) -> Iterator[str]:
    if not diagnosis.tasks:
        yield "No benchmark was run: what the loss means for a task is not known (`tasks=[…]` of the diagnosis)."
        return
    damaged = [task.task for task in diagnosis.tasks if task.damage_significant]
    gained = [task.task for task in diagnosis.tasks if task.damage.low > 0]
    yield (
        f"{len(damaged)} of {len(diagnosis.tasks)} benchmarks are significantly worse than the teacher's"
        + (f": {', '.join(damaged)}." if damaged else ".")
    )
    if gained:
        yield f"The student is better than its teacher on {', '.join(gained)}: a repair has that to lose."


def _of_layers(diagnosis: DiagnoseResult) -> Iterator[str]:
    worst = min(diagnosis.layers, key=lambda layer: layer.linear_cka, default=None)
    if worst is not None:
        bounds = "" if worst.ceiling is None else f", where the teacher in another precision has {worst.ceiling:.3f}"
        floor = "" if worst.floor is None else f" and newly drawn weights {worst.floor:.3f}"
        yield f"CKA is lowest in block {worst.layer}: {worst.linear_cka:.3f}{bounds}{floor}."


def _of_repairs(repairs: tuple[RepairTrial, ...]) -> Iterator[str]:
    for name in dict.fromkeys(trial.repair for trial in repairs):
        trials = tuple(trial for trial in repairs if trial.repair == name)
        found = best(trials)
        if found is not None:
            yield (
                f"{_named(found)} leaves {_range(found.token_kl_nats)} nats, a gain of {_range(found.gain)} "
                f"({regained(found):.0%}) in {found.seconds:.0f} s."
            )
        elif any(trial.gain.low > 0 for trial in trials):
            yield f"{name} helps only with more than {LARGEST_BASE_SHARE:.0%} of the base, which is a return to it."
        else:
            notes = "; ".join(dict.fromkeys(trial.note for trial in trials if trial.note and not trial.settings))
            yield f"{name}: {notes or 'no significant gain'}."
    if any(trial.repair in MIXES and is_answer(trial) for trial in repairs):
        yield (
            "Weights nearer to the base give up some of what the student learnt since. How much is not in these figures: score "
            "the repaired model on the task that the student was made for."
        )


def _of_pilot(pilot: Pilot | None, broke_down: str | None) -> Iterator[str]:
    if broke_down is not None:
        yield f"The pilot broke down: {broke_down}."
    if pilot is None:
        return
    yield (
        f"{pilot.steps} steps of training on {pilot.num_tokens:,} tokens moved held-out token KL from "
        f"{pilot.kl_before.value:.3f} to {pilot.kl_after.value:.3f} nats; for {pilot.planned_steps} steps a recovered fraction "
        f"of {_range(pilot.recovered_fraction)} is predicted, at {pilot.planned_tokens:,} tokens, "
        f"{pilot.planned_seconds / 60:.1f} minutes and {pilot.planned_memory_bytes / GIB:.1f} GiB on this machine."
    )


def _of_past(past: tuple[PastPrediction, ...]) -> Iterator[str]:
    if past:
        errors = [abs(run.predicted - run.actual) for run in past]
        yield (
            f"On {len(past)} finished runs the same prediction was off by {sum(errors) / len(errors):.2f} of the token KL on "
            f"average, and by {max(errors):.2f} at most."
        )


def _named(trial: RepairTrial) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
    return f"{trial.repair} ({settings})" if settings else trial.repair


def _range(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
