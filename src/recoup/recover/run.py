"""The recover stage: load, train with checkpoints, save on the structure, verify.

A stopped run continues from its last checkpoint and ends with the weights of an unstopped one.
"""

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from recoup.config import Recover, Term
from recoup.data.prompts import Prompt, fitting, load_prompts
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.progress import Progress, silent
from recoup.recover.bootstrap import Phase
from recoup.recover.objective import TermBatch
from recoup.recover.teacher import Teacher, load_teachers
from recoup.recover.trainer import TermData, Trainer
from recoup.results import RecoverResult, RecoverStep
from recoup.run_folder import make_folder, read_jsonl, result_path, write_text
from recoup.structure.guard import Guard
from recoup.structure.infer import merge, shapes_against
from recoup.structure.spec import Structure
from recoup.training.checkpoint import load_checkpoint, save_checkpoint
from recoup.training.plan import lora_of, training_plan


@dataclass(frozen=True)
class RecoverInputs:
    """What is repaired, and by whom: one teacher per term of the objective."""

    student: str
    teachers: tuple[str, ...]
    seed: int
    chat_template: str | Path | None = None


def run(config: Recover, inputs: RecoverInputs, folder: Path, progress: Progress = silent) -> RecoverResult:
    """Repair the student and write `checkpoint/`, `metrics.jsonl`, `rollouts.jsonl`, `prompts.jsonl`, `result.json`.

    Raises:
        SourceError: student or teacher cannot be loaded, or their tokenizers differ.
        DataError: a term has no usable prompt.
        StructureError: the student does not fit its structure.
        TrainingError: the loss became NaN; the last checkpoint stays.
        RunFolderError: the folder cannot be written.
    """
    make_folder(folder)
    student = load(inputs.student, chat_template=inputs.chat_template)
    plan = training_plan(student, config.train)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    teachers = load_teachers(inputs.teachers, student, dtype, inputs.chat_template)
    smaller = shapes_against(student.model.config, teachers[0].model.model.config)
    structure = merge(student.structure, Structure(shapes=smaller))
    progress(f"student: {structure.describe()} ({student.structure_origin})", 1, 1)
    guard = Guard(student.model, structure, plan, lora_of(config.train, inputs.seed))
    terms = _terms(config, teachers, inputs.seed, folder, progress)
    trainer = Trainer(config, student, guard, terms, inputs.seed)
    _train(trainer, folder, progress)
    checked = save(student, guard.structure, folder / "checkpoint")
    steps = _read_steps(folder)
    result = RecoverResult(
        student=inputs.student,
        teachers=inputs.teachers,
        checkpoint=str(folder / "checkpoint"),
        steps=config.steps,
        num_tokens=sum(step.num_tokens for step in steps),
        num_prompts=sum(len(term.prompts) for term in terms),
        on_policy_from_step=trainer.phase.on_policy_from,
        first_loss_nats=steps[0].loss,
        last_loss_nats=steps[-1].loss,
        structure=checked.structure.describe(),
        structure_exact=checked.exact,
        num_trained=trainer.stepper.num_trained,
        optimizer_bytes=trainer.stepper.optimizer_bytes(),
        seconds=sum(step.seconds_sampling + step.seconds_teacher + step.seconds_student for step in steps),
        peak_memory_bytes=_peak_memory_bytes(),
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))
    return result


def _train(trainer: Trainer, folder: Path, progress: Progress) -> None:
    """Steps from the last checkpoint, or from the start, to the end."""
    config, state = trainer.config, folder / "state"
    position = load_checkpoint(state, trainer.student.model, trainer.guard, trainer.stepper)
    first = 0
    if position is not None:
        first, start = int(str(position["step"])), position["on_policy_from"]
        trainer.phase = Phase(None if start is None else int(str(start)))
    _keep_lines(folder / "metrics.jsonl", first)
    _keep_lines(folder / "rollouts.jsonl", first)
    for step in range(first, config.steps):
        metrics, batch = trainer.step(step)
        _append(folder / "metrics.jsonl", [metrics.model_dump()])
        _append(folder / "rollouts.jsonl", _texts(trainer.student, batch, metrics))
        progress(f"recover: {metrics.phase.replace('_', '-')}, {metrics.loss:.3f} nats", step + 1, config.steps)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            position = {"step": step + 1, "on_policy_from": trainer.phase.on_policy_from}
            save_checkpoint(state, trainer.student.model, trainer.guard, trainer.stepper, position)


def _terms(
    config: Recover, teachers: tuple[Teacher, ...], seed: int, folder: Path, progress: Progress
) -> list[TermData]:
    """Prompts and teacher of every term; what the terms train on is saved with the run, once."""
    path = folder / "prompts.jsonl"
    saved = read_jsonl(path) if path.is_file() else None
    terms = []
    for index, (term, teacher) in enumerate(zip(config.terms, teachers, strict=True)):
        progress(f"prompts: {term.prompts}", index, len(config.terms))
        prompts = _saved_prompts(saved, index) if saved else _new_prompts(config, term, teacher, seed)
        terms.append(TermData(prompts, teacher, term.weight))
    if saved is None:
        rows = [{"term": i, "text": p.text, "ids": p.ids} for i, term in enumerate(terms) for p in term.prompts]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return terms


def _new_prompts(config: Recover, term: Term, teacher: Teacher, seed: int) -> list[Prompt]:
    prompts = load_prompts(term.prompts, teacher.model, term.num_prompts, seed, "train")
    return fitting(prompts, config.rollout.max_prompt_tokens)


def _saved_prompts(rows: list[dict], term: int) -> list[Prompt]:
    return [Prompt(row["text"], tuple(row["ids"])) for row in rows if row["term"] == term]


def _texts(student: LanguageModel, batch: list[TermBatch], metrics: RecoverStep) -> list[dict[str, object]]:
    """The step's rollouts as text."""
    rows: list[dict[str, object]] = []
    for index, term in enumerate(batch):
        rollouts = term.rollouts
        prompt_BT = rollouts.attention_BT & ~rollouts.completion_BT
        for tokens, mask, answer in zip(rollouts.tokens_BT, prompt_BT, rollouts.completions(), strict=True):
            prompt, completion = student.tokenizer.decode(tokens[mask]), student.tokenizer.decode(answer)
            rows.append(
                {
                    "step": metrics.step,
                    "phase": metrics.phase,
                    "term": index,
                    "prompt": prompt,
                    "completion": completion,
                }
            )
    return rows


def _append(path: Path, rows: list[dict]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _keep_lines(path: Path, before_step: int) -> None:
    """Drop the lines of steps that are about to be taken again, and a line that was cut off in the middle."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] >= before_step:
            break
        kept.append(line)
    write_text(path, "".join(kept))


def _read_steps(folder: Path) -> list[RecoverStep]:
    return [RecoverStep.model_validate(row) for row in read_jsonl(folder / "metrics.jsonl")]


def _peak_memory_bytes() -> int:
    """Peak of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
