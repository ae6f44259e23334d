"""Repairs without training, tried one after the other and scored on prompts that they were not fitted to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from recoup.config import FreeRepair, Triage
from recoup.errors import RecoupError
from recoup.evaluate.fidelity import TeacherValues
from recoup.progress import Progress
from recoup.repair import Candidate, Damaged, applies, candidates, keep
from recoup.results import Estimate, RepairTrial
from recoup.run_folder import settle
from recoup.triage.decide import best, is_answer
from recoup.triage.parts import once
from recoup.triage.score import PromptKL, gain, scored

KEPT = "repaired"
TRIALS: TypeAdapter[tuple[RepairTrial, ...]] = TypeAdapter(tuple[RepairTrial, ...])
NO_GAIN = Estimate(value=0.0, low=0.0, high=0.0)


@dataclass(frozen=True)
class Bench:
    """What repairs are tried on and measured with."""

    damaged: Damaged
    said: TeacherValues
    student: PromptKL
    seed: int
    folder: Path


def try_repairs(config: Triage, bench: Bench, progress: Progress) -> tuple[RepairTrial, ...]:
    """Every candidate of every repair, lowest token KL first; the best that can be an answer is kept if `config` says so.

    A repair that does not apply, or fails, stands there with the student's own figures and a note.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    settle(bench.folder / KEPT)
    found: tuple[RepairTrial, ...] = ()
    for done, name in enumerate(config.repairs):
        progress(f"triage: repairs\n{name}", done, len(config.repairs))
        known = best(found)
        if name == "norms" and known is not None and known.repair == "rounding":
            found += (_not_tried(name, bench, "better rounding helps, and norms fitted after it brought nothing more"),)
            continue
        work = partial(_trials, name, bench, _keeper(bench, known) if config.keep else _let_go, progress)
        found += once(bench.folder / "repairs" / f"{name}.json", TRIALS, work)
    progress("triage: repairs", len(config.repairs), len(config.repairs))
    answer = best(found)
    if config.keep and answer is not None:
        place = {"checkpoint": str(bench.folder / KEPT)}
        found = tuple(trial.model_copy(update=place) if trial is answer else trial for trial in found)
    return tuple(sorted(found, key=lambda trial: trial.token_kl_nats.value))


Keep = Callable[[Candidate, RepairTrial], None]


def _trials(name: FreeRepair, bench: Bench, keeping: Keep, progress: Progress) -> tuple[RepairTrial, ...]:
    if reason := applies(name, bench.damaged):
        return (_not_tried(name, bench, reason),)
    trials: list[RepairTrial] = []
    try:
        trials.extend(_tried(name, bench, keeping, progress))  # what came before a failure stays
    except RecoupError as error:  # one repair that fails takes neither the others nor the advice with it
        trials.append(_not_tried(name, bench, str(error)))
    return tuple(trials)


def _tried(name: FreeRepair, bench: Bench, keeping: Keep, progress: Progress) -> Iterator[RepairTrial]:
    began = time.perf_counter()
    for candidate in candidates(name, bench.damaged, progress):
        after = scored(bench.said, candidate.model)
        trial = RepairTrial(
            repair=name,
            settings=candidate.settings,
            token_kl_nats=after.mean(bench.seed),
            gain=gain(bench.student, after, bench.seed),
            structure=candidate.model.structure.describe(),
            checkpoint=None,
            note=candidate.note,
            seconds=time.perf_counter() - began,
        )
        keeping(candidate, trial)
        yield trial
        began = time.perf_counter()


def _not_tried(name: FreeRepair, bench: Bench, reason: str) -> RepairTrial:
    return RepairTrial(
        repair=name,
        settings={},
        token_kl_nats=bench.student.mean(bench.seed),
        gain=NO_GAIN,
        structure=bench.damaged.student.structure.describe(),
        checkpoint=None,
        note=f"not tried: {reason}",
        seconds=0.0,
    )


def _keeper(bench: Bench, known: RepairTrial | None) -> Keep:
    """Save each candidate that can be an answer and beats all before it; a later one takes its place."""
    least = [float("inf") if known is None else known.token_kl_nats.value]

    def keeping(candidate: Candidate, trial: RepairTrial) -> None:
        if is_answer(trial) and trial.token_kl_nats.value < least[0]:
            keep(candidate, bench.folder / KEPT)
            least[0] = trial.token_kl_nats.value

    return keeping


def _let_go(_candidate: Candidate, _trial: RepairTrial) -> None:
    """Nothing is kept."""
