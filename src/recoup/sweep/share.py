"""What runs of a sweep have in common is made once: records that another run has made are copied into a run's folder.

- `degrade/<type>/result.json`, where model, seed, chat template and all injuries so far are equal. It names the damaged model in
  the folder that made it, so weights lie on disk once.
- `diagnose/before/result.json`, where the same two models were diagnosed with the same settings and seed.
- `evaluate/{reference,degraded}/<task>.json`, where the same model was scored on the same items. These files are keyed by all
  that decides a score (`recoup.evaluate.stored`), so one that does not fit is scored anew, not believed.

Only what is finished is copied (a stage's or a model's `result.json` is written last), and what a run has itself stays.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recoup.config import RunConfig
from recoup.results import DegradeResult, DiagnoseResult, ModelScores
from recoup.run_folder import RunFolder, atomic_file, result_path
from recoup.sweep.expand import PlannedRun

STATES = ("reference", "degraded", "recovered")  # of an evaluation


@dataclass(frozen=True)
class _Run:
    config: RunConfig
    folder: RunFolder


def share(run: PlannedRun, runs: Sequence[PlannedRun], root: Path) -> None:
    """Copy into the folder of `run` what the other `runs` of the sweep in `root` have made for it.

    Raises:
        RunFolderError: the folder cannot be written.
        DataError: another run's record cannot be read.
    """
    own = _Run(run.config, RunFolder(root / run.name))
    nearest = sorted(runs, key=lambda other: other.name != run.baseline)  # that one has made most of what is needed
    others = [_Run(other.config, RunFolder(root / other.name)) for other in nearest if other.name != run.name]
    _share_damage(own, others)
    reference, student = _models(own)
    if reference is not None and student is not None:
        _share_diagnosis(own, others, (reference, student))
    for state, model in (("reference", reference), ("degraded", student)):
        if model is not None:
            _share_scores(own, others, state, model)


def same_first_injury(one: RunConfig, other: RunConfig) -> bool:
    """Whether both begin with the same damage, so that one should wait until the other has made it."""
    return bool(one.degrade) and bool(other.degrade) and _damage(one, 1) == _damage(other, 1)


def _share_damage(own: _Run, others: Sequence[_Run]) -> None:
    for count, step in enumerate(own.config.degrade, start=1):
        made = (
            result_path(other.folder.degrade(step.type))
            for other in others
            if len(other.config.degrade) >= count and _damage(other.config, count) == _damage(own.config, count)
        )
        _copy_first(made, result_path(own.folder.degrade(step.type)), _model_is_there)


def _damage(config: RunConfig, count: int) -> list[Any]:
    """All that decides the model after `count` injuries."""
    return [config.model, config.seed, config.chat_template, config.degrade[:count]]


def _model_is_there(result: Path) -> bool:
    return Path(DegradeResult.read(result).checkpoint).is_dir()


def _models(own: _Run) -> tuple[str | None, str | None]:
    """Where the reference and the damaged model are loaded from; none where they are not made yet."""
    states = {"model": own.config.model}
    for step in own.config.degrade:
        made = result_path(own.folder.degrade(step.type))
        if made.is_file():
            states[step.type] = DegradeResult.read(made).checkpoint
    reference = states.get(own.config.evaluate.reference or own.config.before_last_injury)
    return reference, own.config.student or states.get(own.config.degrade[-1].type)


def _share_diagnosis(own: _Run, others: Sequence[_Run], models: tuple[str, str]) -> None:
    def settings(config: RunConfig) -> list[Any]:
        return [config.diagnose, config.seed, config.chat_template]

    def of_these_models(result: Path) -> bool:
        found = DiagnoseResult.read(result)
        return (found.teacher, found.student) == models

    made = (
        result_path(other.folder.diagnose("before"))
        for other in others
        if settings(other.config) == settings(own.config)
    )
    _copy_first(made, result_path(own.folder.diagnose("before")), of_these_models)


def _share_scores(own: _Run, others: Sequence[_Run], state: str, model: str) -> None:
    """Scores of `model`, whatever its part in the run that scored it: one run's damaged model may be another's reference."""
    folder = own.folder.evaluate / state
    missing = [task for task in own.config.evaluate.tasks if not (folder / f"{task}.json").is_file()]
    if missing:  # else nothing need be read
        scored = list(_scored(own, others, model))
        for task in missing:
            _copy_first((other / f"{task}.json" for other in scored), folder / f"{task}.json", Path.is_file)


def _scored(own: _Run, others: Sequence[_Run], model: str) -> Iterator[Path]:
    """Folders with scores of `model` that were made with the settings of `own`."""

    def settings(config: RunConfig) -> list[Any]:
        evaluate = config.evaluate
        items = [evaluate.limit, evaluate.limits, evaluate.max_new_tokens, evaluate.seed]
        return [*items, evaluate.data, config.chat_template]

    for other in others:
        if settings(other.config) == settings(own.config):
            results = (result_path(other.folder.evaluate / state) for state in STATES)
            yield from (
                result.parent for result in results if result.is_file() and ModelScores.read(result).model == model
            )


def _copy_first(candidates: Iterable[Path], target: Path, fits: Callable[[Path], bool]) -> None:
    """The first candidate that is there and fits becomes `target`, unless there is one."""
    if target.is_file():
        return
    for candidate in candidates:
        if candidate.is_file() and fits(candidate):
            with atomic_file(target) as temporary:
                shutil.copyfile(candidate, temporary)
            return
