"""From a run's config to the numbers that the formulas take: shapes, what trains, what is done at once."""

from dataclasses import dataclass

import torch

from recoup.config import Recover, RunConfig, Term
from recoup.models.sample import DEFAULT_BATCH
from recoup.plan.memory import Device, Load, Savings, TeacherShape
from recoup.plan.shapes import (
    Activations,
    ModelShape,
    activations_of,
    damaged_config,
    meta_model,
    read_config,
    shape_of,
)
from recoup.plan.speed import Work, mean_completion_tokens
from recoup.plan.trained import Kept, Trained, kept_after, kept_by, trained
from recoup.training.memory import PLAIN_ATTENTION_TOKENS

# Tokens of the prompts that a teacher writes for itself, template included: mean and longest of the 192 of results/int3.
SELF_PROMPT_MEAN, SELF_PROMPT_LONGEST = 58, 92
FILE_PROMPT_SHARE = 0.5  # mean prompt of a file nobody has looked into, as a share of max_prompt_tokens


@dataclass(frozen=True)
class Models:
    """Student and teachers, unloaded."""

    student: ModelShape
    kept: dict[str, Kept]
    activations: Activations
    teachers: dict[str, ModelShape]  # frozen ones, by name
    self_teachers: tuple[str, ...]  # `ema`, `start`


def models_of(config: RunConfig) -> Models:
    """Read the configs of a run's models and count.

    Raises:
        SourceError: a model cannot be found, or its config not be read.
        StructureError: an injury that does not fit the model.
    """
    dtype = compute_dtype(config.recover)
    start = read_config(config.student or config.model)
    model = meta_model(damaged_config(start, config.degrade), dtype)
    shape = shape_of(model)
    kept = kept_by(config.student or config.model, start, shape) | kept_after(shape, config.degrade)
    names = dict.fromkeys(teacher_of(config, term) for term in config.recover.terms if needs_teacher(term))
    frozen = {name: _state_shape(config, name) for name in names if name not in ("ema", "start")}
    plain = device_of() == "cpu" and _tokens(config.recover) <= PLAIN_ATTENTION_TOKENS
    activations = activations_of(model, plain_attention=plain)
    return Models(shape, kept, activations, frozen, tuple(name for name in names if name not in frozen))


def trained_of(models: Models, recover: Recover) -> Trained:
    """What of the student trains."""
    return trained(models.student, recover.train, models.kept)


def load_of(recover: Recover) -> Load:
    """What is done at once."""
    longest = max(SELF_PROMPT_LONGEST if term.prompts == "self" else _longest(recover) for term in recover.terms)
    return Load(
        device=device_of(),
        compute_bytes=compute_dtype(recover).itemsize,
        micro_batch=min(recover.micro_batch_size, recover.batch_size),
        sampled_at_once=min(DEFAULT_BATCH, recover.batch_size * recover.rollout.ahead),
        prompt_tokens=min(longest, recover.rollout.max_prompt_tokens),
        completion_tokens=recover.rollout.max_tokens,
    )


def savings_of(recover: Recover) -> Savings:
    """What is spent to fit."""
    memory = recover.memory
    return Savings(memory.optimizer, memory.gradient_checkpointing, memory.offload_activations)


def work_of(recover: Recover) -> Work:
    """What one step does, on the mean."""
    rollout = recover.rollout
    lengths = [
        SELF_PROMPT_MEAN if t.prompts == "self" else FILE_PROMPT_SHARE * _longest(recover) for t in recover.terms
    ]
    return Work(
        rollouts=recover.batch_size,
        prompt_tokens=min(sum(lengths) / len(lengths), rollout.max_prompt_tokens),
        completion_tokens=mean_completion_tokens(rollout.max_tokens, rollout.start_tokens, rollout.grow_until),
        sampled_steps=1 / rollout.uses,
        checkpointing=recover.memory.gradient_checkpointing,
        optimizer=recover.memory.optimizer,
    )


def teachers_of(models: Models, recover: Recover) -> tuple[TeacherShape, ...]:
    """How many numbers each teacher holds: of the student's own states, what trains and nothing else."""
    hold = recover.teachers.hold
    frozen = [
        TeacherShape(
            name,
            shape.num_parameters,
            sum(weight.size for weight in shape.weights if weight.is_linear),
            hold,
            num_blocks=shape.num_blocks,
        )
        for name, shape in models.teachers.items()
    ]
    moved = trained_of(models, recover).moved
    return (*frozen, *(TeacherShape(name, moved, averaged=name == "ema") for name in models.self_teachers))


def assumptions_of(recover: Recover) -> tuple[str, ...]:
    """What the prediction takes for granted."""
    load, work = load_of(recover), work_of(recover)
    notes = [
        f"prompts of {work.prompt_tokens:.0f} tokens on the mean and {load.prompt_tokens} at most",
        "completions as long as allowed: shorter ones take less time",
    ]
    if recover.rollout.backend not in ("native", "transformers"):
        notes.append(f"sampling as if native: {recover.rollout.backend} is another program, with memory of its own")
    if recover.hidden_states is not None:
        notes.append("the term on hidden states is left out: a few percent of the student's time and memory")
    if load.device == "cuda":
        notes.append("time on accelerators has not been measured yet")
    return tuple(notes)


def device_of() -> Device:
    """Where models are loaded to."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(recover: Recover) -> torch.dtype:
    """The type that student and teachers compute in."""
    return torch.bfloat16 if recover.precision == "bf16" else torch.float32


def needs_teacher(term: Term) -> bool:
    """Whether a term's teacher is loaded: cross-entropy on a file's answers has none."""
    return term.loss == "distill" or term.completions == "teacher"


def teacher_of(config: RunConfig, term: Term) -> str:
    """The name of a term's teacher."""
    return term.teacher or config.before_last_injury


def _state_shape(config: RunConfig, name: str) -> ModelShape:
    """A state of the run by its name, or any other model a user names."""
    types = [injury.type for injury in config.degrade]
    if name != "model" and name not in types:
        return shape_of(meta_model(read_config(name), torch.float32))
    injuries = config.degrade[: types.index(name) + 1] if name in types else ()
    return shape_of(meta_model(damaged_config(read_config(config.model), injuries), torch.float32))


def _tokens(recover: Recover) -> int:
    return recover.rollout.max_prompt_tokens + recover.rollout.max_tokens


def _longest(recover: Recover) -> int:
    return recover.rollout.max_prompt_tokens
