"""What to do about the damage, and which checkpoint to do it with."""

from typing import Any, Literal

from recoup.results.base import Estimate, Record, Result

Verdict = Literal[
    "nothing significant lost",
    "interpolate with the base",
    "re-quantize better",
    "recover",
    "not recoverable at this size",
]


class RepairTrial(Record):
    """A repair without training, and what it brings."""

    repair: str  # its name, such as `interpolate`
    settings: dict[str, Any]  # such as {"share": 0.5}
    token_kl_nats: Estimate  # to the teacher, on the diagnosis's prompts
    gain: Estimate  # the student's token KL minus this one, nats, paired by prompt: above 0 is better
    structure: str  # what the repaired model keeps, one line
    checkpoint: str | None  # where it is; null: not kept
    note: str | None = None  # why it could not be tried, or what it gives up
    seconds: float


class Pilot(Record):
    """A short repair, and what the planned one is predicted to bring and cost."""

    steps: int
    num_tokens: int
    kl_before: Estimate  # held-out token KL, nats
    kl_after: Estimate
    recovered_fraction: Estimate  # of the token KL, predicted for the planned repair
    planned_steps: int
    planned_tokens: int
    planned_seconds: float
    planned_memory_bytes: int
    seconds: float


class PastPrediction(Record):
    """The same prediction made from the first steps of a finished run, and what came of it."""

    run: str
    predicted: float  # recovered fraction of the token KL
    actual: float


class TriageResult(Result):
    """The advice."""

    teacher: str
    student: str
    verdict: Verdict
    reason: str  # one sentence
    evidence: tuple[str, ...]  # what it rests on, a sentence each
    command: str | None  # what to run next
    repairs: tuple[RepairTrial, ...]  # best first
    pilot: Pilot | None
    past: tuple[PastPrediction, ...]
    seconds: float


class CapabilityScore(Record):
    """One checkpoint on one capability (a benchmark, or a group of prompts)."""

    capability: str
    score: Estimate  # higher is better
    gain: Estimate  # over the student, paired by item


class CheckpointScores(Record):
    """One checkpoint of a history, oldest first."""

    checkpoint: str
    order: int  # place in the history
    scores: tuple[CapabilityScore, ...]


class ChosenTeacher(Record):
    """Who should teach a capability."""

    capability: str
    checkpoint: str  # where it peaked
    gain: Estimate  # over the student
    significant: bool  # Holm-corrected over capabilities and checkpoints
    weight: float  # of its term


class HistoryResult(Result):
    """The tournament."""

    student: str
    checkpoints: tuple[CheckpointScores, ...]
    chosen: tuple[ChosenTeacher, ...]
    terms: tuple[dict[str, Any], ...]  # for `recover.terms`
    left_out: tuple[str, ...] = ()  # checkpoints that could not be scored, with the reason
    seconds: float
