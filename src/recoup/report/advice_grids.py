"""What was tried and which checkpoint was best, as tables; pure functions of triage and history."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from recoup.report.grid import Grid, known_interval
from recoup.report.words import (
    DASH,
    counted,
    duration,
    gibibytes,
    interval,
    number,
    percent,
    percent_interval,
    significant_interval,
)
from recoup.results import CapabilityScore, CheckpointScores, HistoryResult, PastPrediction, Pilot, RepairTrial


def repair_grid(repairs: Sequence[RepairTrial]) -> Grid:
    """A row per repair without training, best first."""
    columns = ("Repair", "Gain, nats", "Token KL, nats", "Keeps", "Time", "What became of it")
    rows = tuple(_repair_row(x) for x in repairs)
    caption = (
        "Repairs without training, best first; gain is the student's token KL less the repaired one's, paired by prompt"
    )
    return Grid(caption, columns, rows, words=(3, 5))


def _repair_row(x: RepairTrial) -> tuple[str, ...]:
    """A repair that took no time was not tried: its numbers are the student's own, and its note says why."""
    tried = x.seconds > 0
    fate = [part for part in (x.note, x.checkpoint and f"saved in {x.checkpoint}") if part]
    return (
        f"{x.repair}{_settings(x.settings)}",
        known_interval(x.gain, significant_interval) if tried else DASH,
        known_interval(x.token_kl_nats, significant_interval) if tried else DASH,
        x.structure if tried else DASH,
        duration(x.seconds) if tried else DASH,
        "; ".join(fate) or "not kept",
    )


def _settings(settings: Mapping[str, Any]) -> str:
    said = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    return f" ({said})" if said else ""


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def pilot_pairs(pilot: Pilot) -> dict[str, str]:
    """The pilot and what it foretells."""
    return {
        "pilot": f"{counted(pilot.steps, 'step')}, {pilot.num_tokens:,} completion tokens, {duration(pilot.seconds)}",
        "held-out token KL before it, nats": significant_interval(pilot.kl_before),
        "held-out token KL after it, nats": significant_interval(pilot.kl_after),
        "planned repair": f"{counted(pilot.planned_steps, 'step')}, {pilot.planned_tokens:,} completion tokens",
        "predicted recovered fraction of the token KL": percent_interval(pilot.recovered_fraction),
        "predicted time": duration(pilot.planned_seconds),
        "predicted peak memory": gibibytes(pilot.planned_memory_bytes),
    }


def past_grid(past: Sequence[PastPrediction]) -> Grid:
    """A row per finished run of which the same was predicted."""
    rows = tuple((x.run, percent(x.predicted), percent(x.actual), _points(x.predicted - x.actual)) for x in past)
    columns = ("Finished run", "Predicted", "Came true", "Predicted − true")
    return Grid("How wrong such predictions were: recovered fraction of the token KL", columns, rows)


def past_sentence(past: Sequence[PastPrediction]) -> str:
    """How wrong, on average and at worst."""
    errors = [abs(x.predicted - x.actual) for x in past]
    mean = 100 * sum(errors) / len(errors)
    return (
        f"On {counted(len(past), 'finished run')} the same prediction was off by {mean:.0f} percentage points on average, "
        f"{100 * max(errors):.0f} at most."
    )


def _points(share: float) -> str:
    return f"{100 * share:+.0f} points".replace("-", "−")


def capabilities(history: HistoryResult) -> tuple[str, ...]:
    """Every capability that some checkpoint was scored on, in the order of the records."""
    return tuple(dict.fromkeys(x.capability for checkpoint in history.checkpoints for x in checkpoint.scores))


def score_of(checkpoint: CheckpointScores, capability: str) -> CapabilityScore | None:
    """One checkpoint's score on one capability; null where it was not scored."""
    return next((x for x in checkpoint.scores if x.capability == capability), None)


def peak_of(history: HistoryResult, capability: str) -> CheckpointScores | None:
    """The checkpoint with the highest score, the earliest of equals; null where there is no number."""
    scored = [(checkpoint, score_of(checkpoint, capability)) for checkpoint in history.checkpoints]
    real = [(c, x.score.value) for c, x in scored if x is not None and not math.isnan(x.score.value)]
    return max(real, key=lambda pair: pair[1])[0] if real else None


def peak_sentence(history: HistoryResult, capability: str) -> str:
    """When a capability was at its best."""
    peak = peak_of(history, capability)
    best = score_of(peak, capability) if peak else None
    if peak is None or best is None:
        return f"{capability}: no checkpoint has a score."
    return f"{capability}: peak {interval(best.score)} at {peak.checkpoint}."


def history_grid(history: HistoryResult) -> Grid:
    """A row per checkpoint, a column per capability, the peak marked."""
    names = capabilities(history)
    peaks = {name: peak_of(history, name) for name in names}
    rows = tuple(
        (f"{checkpoint.order}: {checkpoint.checkpoint}", *(_score(checkpoint, name, peaks[name]) for name in names))
        for checkpoint in history.checkpoints
    )
    caption = "Each checkpoint on each capability, oldest first, with 95% intervals; ▲ marks the peak"
    return Grid(caption, ("Checkpoint", *names), rows)


def _score(checkpoint: CheckpointScores, name: str, peak: CheckpointScores | None) -> str:
    found = score_of(checkpoint, name)
    mark = "▲ " if checkpoint is peak else ""
    return DASH if found is None else f"{mark}{known_interval(found.score)}"


def chosen_grid(history: HistoryResult) -> Grid:
    """A row per capability: who should teach it."""
    rows = tuple(
        (
            x.capability,
            x.checkpoint,
            known_interval(x.gain, interval),
            "better than the student" if x.significant else "within noise",
            number(x.weight, 2),
        )
        for x in history.chosen
    )
    columns = ("Capability", "Teacher", "Gain over the student", "Holm-corrected", "Weight")
    return Grid("Who should teach what; gain on the half of the items that did not choose", columns, rows, words=(1, 3))


def terms_yaml(history: HistoryResult) -> str:
    """The chosen teachers as the `recover` part of a config; empty where there are none."""
    if not history.terms:
        return ""
    tree = {"recover": {"terms": [dict(term) for term in history.terms]}}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
