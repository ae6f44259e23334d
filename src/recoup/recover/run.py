"""The recover stage: load, train with checkpoints, save on the structure, verify.

A stopped run continues from its last checkpoint and ends with the weights of an unstopped one. Under `accelerate launch` every
process calls `run`, on one file system (`training.processes`). With a probe the run may stop before its last step, and ends with
the best student that was seen (`looks`).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from recoup.config import Method, Recover
from recoup.evaluate.tasks import check_tasks
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.progress import Progress, silent
from recoup.recover import teachers as teaching
from recoup.recover.compute import ComputeCopy
from recoup.recover.loaded import Repair
from recoup.recover.loop import train
from recoup.recover.probe import prober
from recoup.recover.record import Record
from recoup.recover.state import BEST, LAST, RunState
from recoup.recover.teachers import Pupil, load_teachers
from recoup.recover.terms import read_terms, write_prompts
from recoup.recover.trackers import check_trackers
from recoup.recover.trainer import Parts, Trainer
from recoup.results import RecoverResult, RecoverStep
from recoup.run_folder import make_folder, result_path, settle, write_text
from recoup.structure.guard import Guard
from recoup.structure.infer import merge, shapes_against
from recoup.structure.spec import Structure
from recoup.training.memory import peak_memory_bytes
from recoup.training.optimizer import Stepper, StepSettings
from recoup.training.plan import lora_of, training_plan
from recoup.training.processes import all_processes
from recoup.training.sharding import RowGuard, check_optimizer, guard_of, whole_student


@dataclass(frozen=True)
class RecoverInputs:
    """What is repaired, and by whom: one teacher per term of the objective."""

    student: str
    teachers: tuple[str, ...]
    seed: int
    chat_template: str | Path | None = None
    method: Method = "onpolicy"  # whose settings these are, for the record
    after: RecoverResult | None = None  # the repair that left this student, whose student and time the record gives
    before: str | None = (
        None  # the model that was compressed; weights that it rounds to train from where they were in it
    )


def run(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress = silent) -> RecoverResult:
    """Repair the student and write `checkpoint/`, `metrics.jsonl`, `rollouts.jsonl`, `prompts.jsonl`, `result.json`.

    With a probe also `probe.jsonl` and `probe_prompts.jsonl`.

    Raises:
        ConfigError: a tracker or an optimizer whose package is not installed, a block that the student does not have, or a probe
            that has nothing to judge by.
        SourceError: student or teacher cannot be loaded, their tokenizers differ, or a vLLM server does not answer.
        DataError: a term has no usable prompt.
        StructureError: the student does not fit its structure.
        TrainingError: the loss became NaN or the student collapsed, more often than `guards` allows; the last checkpoint stays.
        RunFolderError: the folder cannot be written.
    """
    said = progress if all_processes().is_main else silent
    repair = _begin(config, inputs, folder, said)
    train(repair, config.steps, said)
    _choose(repair, said)
    processes = repair.processes
    whole = whole_student(repair.student, processes)
    structure = repair.guard.whole_structure() if isinstance(repair.guard, RowGuard) else repair.guard.structure
    processes.on_main(partial(_finish, repair, inputs, whole, structure))
    return RecoverResult.read(result_path(folder))


def first_steps(
    config: Recover, inputs: RecoverInputs, folder: Path, count: int, progress: Progress = silent
) -> Repair:
    """Take the first `count` steps of a repair, on the schedule of the whole, and stop there: for a pilot.

    Leaves what `run` leaves on the way (`metrics.jsonl`, checkpoints that were due), but no result; `run` on the same folder goes
    on from the last checkpoint.

    Returns:
        The repair, whose student (fp32, on its structure) and compute copy are those after the last step taken.

    Raises:
        RecoupError: as `run`.
    """
    said = progress if all_processes().is_main else silent
    repair = _begin(config, inputs, folder, said)
    train(repair, min(count, config.steps), said)
    return repair


def _begin(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress) -> Repair:
    """Everything loaded; nothing that a killed run left half done."""
    check_trackers(config.trackers)
    if config.probe is not None:
        check_tasks(config.probe.tasks, config.probe.data)
    make_folder(folder)
    all_processes().on_main(partial(_settle, folder))
    return _load(config, inputs, folder, progress)


def _settle(folder: Path) -> None:
    """Undo what a killed run left half done."""
    for name in (LAST, BEST, "checkpoint"):
        settle(folder / name)


def _load(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress) -> Repair:
    processes = all_processes()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    check_optimizer(config.memory.optimizer, processes)
    with processes.first_on_machine():
        student = load(inputs.student, chat_template=inputs.chat_template)
    plan = training_plan(student, config.train)
    guard = guard_of(student, plan, lora_of(config.train, inputs.seed), processes)
    _start_latents(guard, student, config, inputs, progress)
    compute = ComputeCopy(student, guard, dtype, config.memory)
    pupil = Pupil(student, compute.model, guard.trained)
    with processes.first_on_machine():
        teachers = load_teachers(
            config.terms, inputs.teachers, config.teachers, pupil, inputs.chat_template, folder / "scores"
        )
    for teacher in teaching.distinct(teachers):
        progress(teacher.describe(), 1, 1)
    with teachers[0].model() as reference:
        smaller = shapes_against(student.model.config, reference.model.config)
    guard.structure = merge(guard.structure, Structure(shapes=smaller))
    progress(f"student: {guard.structure.describe()} ({student.structure_origin})", 1, 1)
    processes.on_main(partial(write_prompts, config, teachers, inputs.seed, folder, progress))
    terms = read_terms(config, teachers, inputs.seed, folder, progress)
    if config.probe is not None:
        progress(f"probe: {config.probe.prompts}", 0, 1)
    watching = prober(config, teachers, inputs.seed, folder, processes)
    settings = StepSettings(config.precision, config.weight_decay, config.max_grad_norm, config.memory.optimizer)
    parts = Parts(compute, Stepper(guard, settings, processes), terms, processes, folder)
    return Repair(student, guard, teachers, Trainer(config, parts), folder, watching)


def _start_latents(
    guard: Guard, student: LanguageModel, config: Recover, inputs: RecoverInputs, progress: Progress
) -> None:
    """Weights that were rounded to nearest train from where they were, and a step to the next code is mostly shorter."""
    on_grids = any(constraint.grid is not None for constraint in student.structure.constraints.values())
    if inputs.before is None or config.train.what != "weights" or not on_grids:
        return
    earlier = load(inputs.before, chat_template=inputs.chat_template)
    count = guard.start_from(dict(earlier.model.named_parameters()))
    progress(f"student: {count} rounded weight matrices train from where they were before", 1, 1)


def _choose(repair: Repair, progress: Progress) -> None:
    """End with the best student that was seen, where that is asked for."""
    step, position = RunState(repair).end_with_best(), repair.trainer.position
    ends = [position.looks.stopped] if position.looks.stopped else []
    if step != position.step:
        ends.append(f"ends with the student of step {step}, the best that was seen")
    if ends:
        progress(f"probe: {'; '.join(ends)}", 1, 1)


def _finish(repair: Repair, inputs: RecoverInputs, student: LanguageModel, structure: Structure) -> None:
    """Save the repaired student and the stage's result."""
    trainer, folder = repair.trainer, repair.folder
    checked = save(student, structure, folder / "checkpoint")
    steps = Record(folder).steps()
    stepper, probe, after = trainer.parts.stepper, trainer.config.probe, inputs.after
    result = RecoverResult(
        method=inputs.method,
        note=after.note if after else None,
        student=after.student if after else inputs.student,
        teachers=inputs.teachers,
        checkpoint=str(folder / "checkpoint"),
        steps=trainer.position.step,
        num_tokens=sum(step.num_tokens for step in steps),
        num_prompts=sum(len(term.prompts) for term in trainer.parts.terms),
        on_policy_from_step=trainer.position.phase.on_policy_from,
        first_loss_nats=steps[0].loss,
        last_loss_nats=steps[-1].loss,
        structure=checked.structure.describe(),
        structure_exact=checked.exact,
        num_trained=stepper.num_trained,
        optimizer_bytes=stepper.optimizer_bytes(),
        teacher_bytes=sum(teacher.memory_bytes() for teacher in teaching.distinct(repair.teachers)),
        micro_batch_size=trainer.micro_batch_size,
        roll_backs=trainer.position.roll_backs,
        stopped=trainer.position.looks.stopped,
        best_step=trainer.position.looks.best if probe is not None and probe.keep_best else None,
        num_processes=repair.processes.number,
        seconds=sum(_seconds(step) for step in steps) + (after.seconds if after else 0.0),
        peak_memory_bytes=peak_memory_bytes(),
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))


def _seconds(step: RecoverStep) -> float:
    return step.seconds_sampling + step.seconds_teacher + step.seconds_student + step.seconds_optimizer
