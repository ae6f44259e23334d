"""Experiment trackers: every step's metrics to tensorboard, wandb or trackio, besides `metrics.jsonl`.

They are accelerate's (`accelerate/tracking.py`); nothing is home-made but their names and what a resumed run needs. Where we
differ from `Accelerator.init_trackers`: only the first process of several opens them (accelerate opens wandb and trackio in
every process), and a run that continues goes on in the same record, at the right step:

- tensorboard hides what was logged at or after the step that is continued from (`purge_step`);
- wandb drops steps that it has already, whose values are the same, since a continued run equals the unstopped one;
- trackio keeps both.

Nothing here reaches a network unless the tracker's own settings say so: `WANDB_MODE=offline` keeps wandb's records in the run
folder, tensorboard's are always there, and trackio's are in its own cache (`TRACKIO_DIR`).
"""

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from recoup.errors import ConfigError
from recoup.run_folder import write_text

PROJECT = "recoup"
ID_NAME = "tracker_id"  # kept in the stage's folder: a folder that is removed starts a new record

Log = Callable[[int, Mapping[str, object]], None]  # step, its metrics


def check_trackers(names: Sequence[str]) -> None:
    """Fail before anything is loaded if a tracker cannot be imported.

    Raises:
        ConfigError: its package is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"recover.trackers names {name}, which is not installed; run: pip install {name}")


@contextmanager
def open_trackers(
    names: Sequence[str], folder: Path, run_name: str, config: Mapping[str, object], first_step: int
) -> Iterator[Log]:
    """Yield what logs a step to every tracker; all are closed at the end, whatever ends it.

    Args:
        names: `tensorboard`, `wandb`, `trackio`; none at all logs nowhere.
        folder: the stage's folder; tensorboard and wandb write inside it.
        run_name: what the run is called among others.
        config: hyper-parameters, nested as they are.
        first_step: the step that is logged first; more than 0 in a run that continues.

    Raises:
        ConfigError: a package is missing, or a tracker refuses to start; its own words are given.
        RunFolderError: the folder cannot be written.
    """
    check_trackers(names)
    trackers: list[GeneralTracker] = []
    try:
        if names and PartialState().is_main_process:
            trackers += _started(names, folder, run_name, config, first_step)

        def log(step: int, metrics: Mapping[str, object]) -> None:
            values = numbers(metrics)
            for tracker in trackers:
                tracker.log(values, step=step)

        yield log
    finally:
        for tracker in trackers:
            tracker.finish()


def numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    """The metrics that a curve can show: words, missing values and the step itself are left out."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(config: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Hyper-parameters by dotted name, such as `terms.0.prompts`, in the types that every tracker takes."""
    values: dict[str, bool | int | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            inner: Mapping[str, object] = value
        elif isinstance(value, list | tuple):
            inner = {str(index): item for index, item in enumerate(value)}
        else:
            # JSON has no infinity, and wandb's records are JSON
            known = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
            values[name] = value if known else str(value)  # type: ignore[assignment]
            continue
        values |= {f"{name}.{key}": item for key, item in flat(inner).items()}
    return values


def _started(
    names: Sequence[str], folder: Path, run_name: str, config: Mapping[str, object], first_step: int
) -> list[GeneralTracker]:
    path = folder / ID_NAME
    is_new = not path.is_file()
    if is_new:
        write_text(path, uuid.uuid4().hex[:8])
    identity = path.read_text(encoding="utf-8")
    trackers = []
    for name in names:
        tracker = _tracker(name, folder, (run_name, identity), first_step)
        try:
            tracker.start()
            if is_new:
                tracker.store_init_configuration(flat(config))
        except Exception as error:  # each tracker has its own kinds, for a missing login, network or project
            raise ConfigError(f"recover.trackers: {name} does not start ({str(error).splitlines()[0]})") from None
        trackers.append(tracker)
    return trackers


def _tracker(name: str, folder: Path, run: tuple[str, str], first_step: int) -> GeneralTracker:
    run_name, identity = run
    settings: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": name, "logging_dir": str(folder), "purge_step": first_step or None},
        "wandb": {"run_name": PROJECT, "name": run_name, "id": identity, "resume": "allow", "dir": str(folder)},
        "trackio": {"run_name": PROJECT, "name": f"{run_name}-{identity}", "resume": "allow"},
    }
    return LOGGER_TYPE_TO_CLASS[name](**settings[name])
