"""The beginning of the planned repair, taken for real: what it brings on held-out prompts, and what the whole would cost.

The plan is not shortened: the pilot stops early on the plan's own schedule, so warm-up, completion lengths and the off-policy
start are those of the repair. What is left out is what measures and watches (probe, trackers), which changes no weight. Prompts
come from the train split, of which as many are taken as the pilot's steps answer.
"""

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from recoup.config import Recover
from recoup.evaluate.fidelity import TeacherValues
from recoup.progress import Progress
from recoup.recover.record import Record
from recoup.recover.run import RecoverInputs, first_steps
from recoup.recover.teachers.base import bytes_of, held_tensors
from recoup.results import Pilot, RecoverStep
from recoup.training.memory import peak_memory_bytes
from recoup.training.optimizer import Schedule, learning_rate
from recoup.triage.asked import SELF
from recoup.triage.predict import recovered_fraction
from recoup.triage.score import PromptKL, scored, share_left

FORGET_PEAK = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what the kernel wants there (proc_pid_clear_refs(5))


@dataclass(frozen=True)
class Ground:
    """What a pilot is measured on, and how far predictions have been off."""

    said: TeacherValues
    student: PromptKL
    written: str  # where self-written prompts lie; `self` if they are still to be written
    error: float  # of predictions, root mean square
    seed: int


def run_pilot(
    plan: Recover, steps: int, inputs: RecoverInputs, ground: Ground, folder: Path, progress: Progress
) -> Pilot:
    """Take the first `steps` of `plan` in `folder`, and predict the rest.

    Raises:
        RecoupError: as `recover.run.run`.
    """
    began = time.perf_counter()
    _forget_peak()
    repair = first_steps(_watched_by_nobody(plan, steps, ground.written), inputs, folder, steps, progress)
    taken, peak = Record(folder).steps(), peak_memory_bytes()
    progress("triage: pilot measured", 0, 1)
    after = scored(ground.said, repair.student)
    progress("triage: pilot measured", 1, 1)
    rates = [learning_rate(_schedule(plan), step) for step in range(plan.steps)]
    left = share_left(ground.student, after, ground.seed)
    held = bytes_of(held_tensors(ground.said.reference.model))  # by the triage, not by the repair
    return Pilot(
        steps=len(taken),
        num_tokens=sum(step.num_tokens for step in taken),
        kl_before=ground.student.mean(ground.seed),
        kl_after=after.mean(ground.seed),
        recovered_fraction=recovered_fraction(
            left, sum(step.learning_rate for step in taken), sum(rates), ground.error
        ),
        planned_steps=plan.steps,
        planned_tokens=round(sum(step.num_tokens for step in taken) / len(taken) * plan.steps),
        planned_seconds=step_seconds(taken, plan) * plan.steps,
        planned_memory_bytes=max(0, peak - held),
        seconds=time.perf_counter() - began,
    )


def step_seconds(steps: Sequence[RecoverStep], plan: Recover) -> float:
    """What a step of the plan takes: medians by part, and the mean for sampling, which one step does for several.

    Args:
        steps: the first ones. The very first also warms up, and counts for sampling only.
        plan: how many steps are sampled at once.
    """
    rest = steps[1:] or steps
    at_once = plan.rollout.ahead * plan.rollout.uses
    sampled = -(-len(steps) // at_once) * at_once  # steps that were sampled for
    if at_once == 1:
        sampling = median(step.seconds_sampling for step in rest)
    else:
        sampling = sum(step.seconds_sampling for step in steps) / sampled
    parts = ("seconds_teacher", "seconds_student", "seconds_optimizer")
    return sampling + sum(median(getattr(step, part) for step in rest) for part in parts)


def _watched_by_nobody(plan: Recover, steps: int, written: str) -> Recover:
    """The plan for a pilot: the same steps, no more prompts than they answer, self-written ones read from where they lie."""
    wanted = steps * plan.batch_size
    terms = tuple(
        term.model_copy(
            update={
                "num_prompts": min(term.num_prompts, wanted),
                "prompts": written if term.prompts == SELF else term.prompts,
            }
        )
        for term in plan.terms
    )
    return plan.model_copy(update={"terms": terms, "probe": None, "trackers": ()})


def _schedule(plan: Recover) -> Schedule:
    return Schedule(plan.steps, plan.warmup_steps, plan.learning_rate, plan.min_learning_rate_fraction)


def _forget_peak() -> None:
    """Let the peak of memory begin here, where the system allows it; else it is that of the whole process."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # no such file outside Linux, and a sandbox may forbid it
            FORGET_PEAK.write_text(RESET_PEAK, encoding="ascii")
