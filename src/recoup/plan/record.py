"""What `recoup plan` finds, as records. Imports no torch."""

from typing import Literal

from recoup.results import Record, Result

Phase = Literal["always", "sampling", "training", "optimizer"]


class MemoryPart(Record):
    """One thing that takes memory, and when it is there."""

    name: str
    phase: Phase
    num_bytes: int


class StepTime(Record):
    """Seconds of one optimizer step, by part, as in `metrics.jsonl`."""

    sampling: float
    teacher: float
    student: float  # forward, divergence, backward
    optimizer: float  # optimizer, structure guard, compute copy

    @property
    def total(self) -> float:
        """All of them, one after another."""
        return self.sampling + self.teacher + self.student + self.optimizer


class MachineRates(Record):
    """What the machine does, as measured just before."""

    device: str
    gemm_flops: float  # multiply-adds count 2, in the type that models compute in, per second
    bytes_per_second: float  # read and written


class Alternative(Record):
    """Settings that need less memory, as they are typed, and the peak with them."""

    settings: tuple[str, ...]
    peak_bytes: int
    fits: bool | None  # null where the system does not say what is free


class PastRun(Record):
    """A run that is over: predicted over measured, 1 is exact."""

    name: str
    measured_peak_bytes: int
    peak_ratio: float
    measured_step_seconds: float
    step_ratio: float
    sampling_ratio: float
    teacher_ratio: float
    student_ratio: float  # student and optimizer, which metrics.jsonl counts together


class PlanResult(Result):
    """A prediction for the recover stage of a run."""

    name: str
    student: str
    num_parameters: int
    num_trained: int
    parts: tuple[MemoryPart, ...]
    peak_bytes: int
    peak_phase: Phase
    available_bytes: int  # 0 where the system does not say
    fits: bool | None
    alternatives: tuple[Alternative, ...]
    rates: MachineRates
    step: StepTime
    completion_tokens_per_second: float
    steps: int
    total_seconds: float
    assumptions: tuple[str, ...]
    past: tuple[PastRun, ...] = ()
