"""How far off the formulas are: predicted over measured, for every run whose records are kept."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
import yaml
from pydantic import ValidationError

from recoup.config import RunConfig
from recoup.errors import DataError, SourceError
from recoup.plan.record import MachineRates, PastRun, StepTime
from recoup.plan.setup import compute_dtype
from recoup.results import RecoverResult, RecoverStep
from recoup.run_folder import RunFolder, read_jsonl, result_path

Predict = Callable[[RunConfig, MachineRates], tuple[int, StepTime]]


def past_runs(
    results: Path, *, rates_of: Callable[[torch.dtype], MachineRates], predict: Predict
) -> tuple[PastRun, ...]:
    """Compare every finished repair under `results` with what would have been predicted for it on this machine.

    The rates are this machine's, now: where a run was made on another one, its times say little, its memory as much. A run
    whose models are not here any more is left out, and so is one that an earlier engine made, which told less of itself.

    Raises:
        DataError: a record is malformed.
    """
    found = []
    for root in sorted(path for path in results.iterdir() if result_path(RunFolder(path).recover).is_file()):
        config = _config(RunFolder(root).config)
        if RecoverResult.read(result_path(RunFolder(root).recover)).teacher_bytes is None:
            continue
        try:
            peak, step = predict(config, rates_of(compute_dtype(config.recover)))
        except SourceError:
            continue
        found.append(compared(root, peak, step))
    return tuple(found)


def compared(root: Path, peak: int, step: StepTime) -> PastRun:
    """One run's records against a prediction; times are means over the steps after the first, some of which draw for others.

    Raises:
        DataError: a record is missing or malformed.
    """
    folder = RunFolder(root)
    result = RecoverResult.read(result_path(folder.recover))
    steps = [RecoverStep.model_validate(row) for row in read_jsonl(folder.recover / "metrics.jsonl")]
    sampling, teacher, student, optimizer = (
        fmean(getattr(step, f"seconds_{part}") for step in steps[1:] or steps)
        for part in ("sampling", "teacher", "student", "optimizer")
    )
    measured = sampling + teacher + student + optimizer
    return PastRun(
        name=root.name,
        measured_peak_bytes=result.peak_memory_bytes,
        peak_ratio=peak / result.peak_memory_bytes,
        measured_step_seconds=measured,
        step_ratio=step.total / measured,
        sampling_ratio=step.sampling / sampling,
        teacher_ratio=step.teacher / teacher,
        student_ratio=(step.student + step.optimizer) / (student + optimizer),
    )


def _config(path: Path) -> RunConfig:
    try:
        return RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DataError(f"{path}: not a readable config ({' '.join(str(error).split())[:200]})") from None
