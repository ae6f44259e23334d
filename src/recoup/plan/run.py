"""Predict the recover stage of a run: peak memory by part, seconds of a step by part, and what would need less.

Of every model its config alone is read; the machine is measured for two seconds.
"""

import math
from pathlib import Path

from recoup.config import FREE, Recover, RunConfig
from recoup.errors import ConfigError
from recoup.plan.memory import passing, peak, resident
from recoup.plan.past import past_runs
from recoup.plan.rates import machine_rates
from recoup.plan.record import MachineRates, MemoryPart, PlanResult, StepTime
from recoup.plan.setup import (
    Models,
    assumptions_of,
    compute_dtype,
    load_of,
    models_of,
    savings_of,
    teachers_of,
    trained_of,
    work_of,
)
from recoup.plan.speed import step_time
from recoup.plan.suggest import alternatives
from recoup.plan.trained import structure_bytes
from recoup.training.memory import available_bytes


def run(config: RunConfig, results: Path | None = None) -> PlanResult:
    """Plan a run; beside it, how far off the same formulas are on the runs whose records lie in `results`.

    Raises:
        ConfigError: the run's method trains nothing.
        SourceError: a model cannot be found, or its config not be read.
        StructureError: an injury that does not fit the model, or no blocks are found.
        DataError: a record in `results` cannot be read.
    """
    if config.method in FREE:
        raise ConfigError(f"method {config.method} trains nothing, so there is no step to plan; choose one that trains")
    config = _as_trained(config)
    models, recover = models_of(config), config.recover
    parts, rates = memory_parts(models, recover), machine_rates(compute_dtype(recover))
    peak_bytes, phase = peak(parts)
    available = available_bytes()
    step = step_seconds(models, recover, rates)
    work = work_of(recover)
    steps = steps_within(recover, work.rollouts * work.completion_tokens, step.total)
    return PlanResult(
        name=config.name,
        student=config.student or config.model,
        num_parameters=models.student.num_parameters,
        num_trained=trained_of(models, recover).numbers,
        parts=parts,
        peak_bytes=peak_bytes,
        peak_phase=phase,
        available_bytes=available,
        fits=peak_bytes <= available if available else None,
        alternatives=alternatives(recover, lambda settings: predicted_peak(models, settings), available),
        rates=rates,
        step=step,
        completion_tokens_per_second=work.rollouts * work.completion_tokens / step.total,
        steps=steps,
        total_seconds=steps * step.total,
        assumptions=assumptions_of(recover),
        past=past_runs(results, rates_of=machine_rates, predict=predict) if results and results.is_dir() else (),
    )


def predict(config: RunConfig, rates: MachineRates) -> tuple[int, StepTime]:
    """Peak bytes and seconds of a step."""
    config = _as_trained(config)
    models = models_of(config)
    return predicted_peak(models, config.recover), step_seconds(models, config.recover, rates)


def _as_trained(config: RunConfig) -> RunConfig:
    """With the settings that its method trains with."""
    return config.model_copy(update={"recover": config.repair})


def steps_within(recover: Recover, tokens: float, seconds: float) -> int:
    """Steps that the budget allows, where one takes so many tokens and seconds; the last one may go over."""
    budget = recover.budget
    if budget is None:
        return recover.steps
    limits = (budget.tokens, tokens), (budget.seconds, seconds)
    return min(recover.steps, *(math.ceil(limit / each) for limit, each in limits if limit is not None))


def predicted_peak(models: Models, recover: Recover) -> int:
    """Peak bytes with these settings."""
    return peak(memory_parts(models, recover))[0]


def memory_parts(models: Models, recover: Recover) -> tuple[MemoryPart, ...]:
    """Everything that takes memory."""
    trained, load = trained_of(models, recover), load_of(recover)
    structure = structure_bytes(models.student, models.kept)
    return (
        *resident(models.student, trained, structure, teachers_of(models, recover), load),
        *passing(models.student, trained, models.activations, load, savings_of(recover)),
    )


def step_seconds(models: Models, recover: Recover, rates: MachineRates) -> StepTime:
    """Seconds of a step; every rollout is scored by one teacher, taken to be the largest."""
    teachers = [models.student, *models.teachers.values()] if models.self_teachers else [*models.teachers.values()]
    teacher = max(teachers, key=lambda shape: shape.num_parameters, default=None)
    machine = (rates, load_of(recover))
    return step_time(models.student, trained_of(models, recover), teacher, work_of(recover), machine)
