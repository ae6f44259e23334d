"""The recover stage: load, train with checkpoints, save on the structure, verify.

A stopped run continues from its last checkpoint and ends with the weights of an unstopped one. Under `accelerate launch` every
process calls `run`, on one file system (`training.processes`).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from recoup.config import Recover
from recoup.errors import TrainingError
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.progress import Progress, silent
from recoup.recover import teachers as teaching
from recoup.recover.compute import ComputeCopy
from recoup.recover.live import LiveView
from recoup.recover.record import Record, texts
from recoup.recover.state import RunState
from recoup.recover.teachers import Pupil, Teacher, load_teachers
from recoup.recover.terms import read_terms, write_prompts
from recoup.recover.trackers import Log, check_trackers, open_trackers
from recoup.recover.trainer import Parts, Trainer
from recoup.results import RecoverResult, RecoverStep
from recoup.run_folder import make_folder, result_path, settle, write_text
from recoup.structure.guard import Guard
from recoup.structure.infer import merge, shapes_against
from recoup.structure.spec import Structure
from recoup.training.memory import peak_memory_bytes
from recoup.training.optimizer import Stepper, StepSettings
from recoup.training.plan import lora_of, training_plan
from recoup.training.processes import Processes, all_processes
from recoup.training.sharding import RowGuard, check_optimizer, guard_of, whole_student


@dataclass(frozen=True)
class RecoverInputs:
    """What is repaired, and by whom: one teacher per term of the objective."""

    student: str
    teachers: tuple[str, ...]
    seed: int
    chat_template: str | Path | None = None


@dataclass(frozen=True)
class Repair:
    """A repair, loaded and ready to step."""

    inputs: RecoverInputs
    student: LanguageModel  # fp32 weights, on the structure
    guard: Guard
    teachers: tuple[Teacher, ...]
    trainer: Trainer
    folder: Path

    @property
    def processes(self) -> Processes:
        """Who takes part."""
        return self.trainer.parts.processes


def run(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress = silent) -> RecoverResult:
    """Repair the student and write `checkpoint/`, `metrics.jsonl`, `rollouts.jsonl`, `prompts.jsonl`, `result.json`.

    Raises:
        ConfigError: a tracker or an optimizer whose package is not installed, or a block that the student does not have.
        SourceError: student or teacher cannot be loaded, their tokenizers differ, or a vLLM server does not answer.
        DataError: a term has no usable prompt.
        StructureError: the student does not fit its structure.
        TrainingError: the loss became NaN or the student collapsed, more often than `guards` allows; the last checkpoint stays.
        RunFolderError: the folder cannot be written.
    """
    check_trackers(config.trackers)
    make_folder(folder)
    processes = all_processes()
    processes.on_main(partial(_settle, folder))
    repair = _load(config, inputs, folder, progress if processes.is_main else silent)
    _train(repair, progress if processes.is_main else silent)
    whole = whole_student(repair.student, processes)
    structure = repair.guard.whole_structure() if isinstance(repair.guard, RowGuard) else repair.guard.structure
    processes.on_main(partial(_finish, repair, whole, structure))
    return RecoverResult.read(result_path(folder))


def _settle(folder: Path) -> None:
    """Undo what a killed run left half done."""
    for name in ("state", "checkpoint"):
        settle(folder / name)


def _load(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress) -> Repair:
    processes = all_processes()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    check_optimizer(config.memory.optimizer, processes)
    with processes.first_on_machine():
        student = load(inputs.student, chat_template=inputs.chat_template)
    plan = training_plan(student, config.train)
    guard = guard_of(student, plan, lora_of(config.train, inputs.seed), processes)
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
    settings = StepSettings(config.precision, config.weight_decay, config.max_grad_norm, config.memory.optimizer)
    parts = Parts(compute, Stepper(guard, settings, processes), terms, processes, folder)
    return Repair(inputs, student, guard, teachers, Trainer(config, parts), folder)


def _train(repair: Repair, progress: Progress) -> None:
    """Steps from the last checkpoint, or from the start, to the end."""
    trainer, record, state = repair.trainer, Record(repair.folder), RunState(repair)
    state.load()
    _keep(repair, record)
    live = LiveView()
    with _trackers(repair) as log:
        while trainer.position.step < trainer.config.steps:
            metrics = _step(repair, record)
            if metrics is None:
                state.go_back()
                _keep(repair, record)
                continue
            log(metrics.step, metrics.model_dump())
            progress(live.label(metrics.model_dump()), metrics.step + 1, trainer.config.steps)
            state.save_if_due()


def _step(repair: Repair, record: Record) -> RecoverStep | None:
    """One step, recorded; null where it went wrong and the run may go back.

    Raises:
        TrainingError: it went wrong, and there is no going back.
    """
    trainer, step = repair.trainer, repair.trainer.position.step
    try:
        metrics, batch = trainer.step(step)
        wrong = trainer.collapsed()
    except TrainingError as error:
        wrong = f"step {step}: {error}"
    if wrong is not None:
        RunState(repair).refuse_to_go_back(wrong)
        return None
    rows = repair.processes.gather(texts(repair.student, batch, metrics))
    if repair.processes.is_main:
        record.add(metrics, rows)
    return metrics


def _keep(repair: Repair, record: Record) -> None:
    """Forget the lines of steps that are about to be taken again, once every process has read where to go on."""
    repair.processes.wait()
    if repair.processes.is_main:
        record.keep(repair.trainer.position.step)


def _trackers(repair: Repair) -> AbstractContextManager[Log]:
    config = repair.trainer.config
    step = repair.trainer.position.step
    return open_trackers(config.trackers, repair.folder, repair.folder.parent.name, config.model_dump(), step)


def _finish(repair: Repair, student: LanguageModel, structure: Structure) -> None:
    """Save the repaired student and the stage's result."""
    trainer, folder, inputs = repair.trainer, repair.folder, repair.inputs
    checked = save(student, structure, folder / "checkpoint")
    steps = Record(folder).steps()
    stepper = trainer.parts.stepper
    result = RecoverResult(
        student=inputs.student,
        teachers=inputs.teachers,
        checkpoint=str(folder / "checkpoint"),
        steps=trainer.config.steps,
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
        num_processes=repair.processes.number,
        seconds=sum(_seconds(step) for step in steps),
        peak_memory_bytes=peak_memory_bytes(),
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))


def _seconds(step: RecoverStep) -> float:
    return step.seconds_sampling + step.seconds_teacher + step.seconds_student + step.seconds_optimizer
