"""The triage stage: score the student, try what costs no training, take the first steps of a repair, decide.

    result = run(config, TriageInputs(teacher, student, diagnosis), folder)

A student of whom the diagnosis says that nothing was lost is sent home at once: no model is loaded. Both models are held in
float32, as structures want it. Parts that are finished lie in the folder (`parts`), so a stopped triage goes on where it
stopped.
"""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from recoup.config import Diagnose, Triage
from recoup.errors import TrainingError
from recoup.evaluate.fidelity import TeacherValues
from recoup.models.load import load
from recoup.progress import Progress, silent
from recoup.recover.run import RecoverInputs
from recoup.repair import Damaged
from recoup.results import DiagnoseResult, PastPrediction, Pilot, RepairTrial, TriageResult
from recoup.run_folder import make_folder, result_path, write_text
from recoup.triage.asked import SELF, Asked, ask
from recoup.triage.command import next_command
from recoup.triage.decide import Evidence, decide, nothing_lost
from recoup.triage.parts import claim, once
from recoup.triage.past import past_predictions
from recoup.triage.pilot import Ground, run_pilot
from recoup.triage.predict import typical_error
from recoup.triage.score import PromptKL, context_free_kl, said_by, scored
from recoup.triage.trials import Bench, try_repairs
from recoup.triage.words import sentences

PILOT = TypeAdapter(Pilot)


@dataclass(frozen=True)
class TriageInputs:
    """Who is advised, and what is known."""

    teacher: str
    student: str
    diagnosis: DiagnoseResult
    seed: int = 0
    chat_template: str | Path | None = None
    asked: Diagnose = field(default_factory=Diagnose)  # the diagnosis's prompts and the length of its completions
    results: Path | None = None  # finished runs, of which the prediction is checked


def run(config: Triage, inputs: TriageInputs, folder: Path, progress: Progress = silent) -> TriageResult:
    """Advise on the student, and write `result.json`, last and atomically; the best repair without training is in `repaired/`.

    Raises:
        SourceError: a model cannot be loaded, or the tokenizers differ.
        DataError: the prompts are missing or too few, or a record of a finished run is malformed.
        StructureError: the student does not fit its structure.
        RunFolderError: the folder cannot be written, or holds another triage.
    """
    started = time.perf_counter()
    make_folder(folder)
    claim(folder, _claimed(config, inputs))
    if result_path(folder).is_file():
        return TriageResult.read(result_path(folder))
    past = past_predictions(inputs.results, config.pilot_steps) if inputs.results and config.pilot_steps else ()
    evidence = Evidence(inputs.diagnosis, inputs.diagnosis.tokens.token_kl_nats, past=past)
    if not nothing_lost(inputs.diagnosis):
        evidence = _gathered(config, inputs, past, folder, progress)
    advice = decide(evidence)
    result = TriageResult(
        teacher=inputs.teacher,
        student=inputs.student,
        verdict=advice.verdict,
        reason=advice.reason,
        evidence=sentences(evidence),
        command=next_command(advice, (inputs.teacher, inputs.student), config.plan, inputs.seed, inputs.chat_template),
        repairs=evidence.repairs,
        pilot=evidence.pilot,
        past=past,
        seconds=time.perf_counter() - started,
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))
    return result


def _gathered(
    config: Triage, inputs: TriageInputs, past: tuple[PastPrediction, ...], folder: Path, progress: Progress
) -> Evidence:
    """What repairs without training bring, and what the beginning of one with it does."""
    teacher = load(inputs.teacher, chat_template=inputs.chat_template)
    progress("triage: prompts", 0, 1)
    asked = ask(teacher, inputs.asked, inputs.seed, config.plan.rollout.max_prompt_tokens, folder)
    progress("triage: prompts", 1, 1)
    said = said_by(teacher, asked.held_out)
    student, repairs = _without_training(config, inputs, said, asked, folder, progress)
    written = asked.source if inputs.asked.prompts == SELF else SELF
    ground = Ground(said, student, written, typical_error(past), inputs.seed)
    pilot, broke_down = _piloted(config, inputs, ground, folder, progress)
    return Evidence(
        diagnosis=inputs.diagnosis,
        student_kl=student.mean(inputs.seed),
        context_free_kl=context_free_kl(said),
        repairs=repairs,
        pilot=pilot,
        broke_down=broke_down,
        past=past,
    )


def _piloted(
    config: Triage, inputs: TriageInputs, ground: Ground, folder: Path, progress: Progress
) -> tuple[Pilot | None, str | None]:
    """The pilot, if there is to be one; or why it broke down, which is as telling."""
    if not config.pilot_steps:
        return None, None
    teachers = tuple(term.teacher or inputs.teacher for term in config.plan.terms)
    pupil = RecoverInputs(inputs.student, teachers, inputs.seed, inputs.chat_template, before=inputs.teacher)
    work = partial(run_pilot, config.plan, config.pilot_steps, pupil, ground, folder / "pilot", progress)
    try:
        return once(folder / "pilot.json", PILOT, work), None
    except TrainingError as error:
        return None, str(error)


def _without_training(
    config: Triage, inputs: TriageInputs, said: TeacherValues, asked: Asked, folder: Path, progress: Progress
) -> tuple[PromptKL, tuple[RepairTrial, ...]]:
    """The student's score and the repairs'; the student is let go of at the end, to leave its memory to the pilot."""
    student = load(inputs.student, chat_template=inputs.chat_template)
    score = scored(said, student)
    damaged = Damaged(said.reference, student, asked.calibration)
    return score, try_repairs(config, Bench(damaged, said, score, inputs.seed, folder), progress)


def _claimed(config: Triage, inputs: TriageInputs) -> dict[str, Any]:
    """What tells this triage from another one."""
    return {
        "teacher": inputs.teacher,
        "student": inputs.student,
        "token_kl_nats": f"{inputs.diagnosis.tokens.token_kl_nats.value:.3g}",  # models may change where they lie
        "seed": inputs.seed,
        "chat_template": None if inputs.chat_template is None else str(inputs.chat_template),
        "asked": inputs.asked.model_dump(mode="json"),
        "triage": config.model_dump(mode="json"),
    }
