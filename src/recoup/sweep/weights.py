"""Models that a sweep with `keep_weights: false` removes: a repair's when its run is finished, the damaged ones at the end."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from recoup.config_file import dump_config
from recoup.run_folder import RunFolder
from recoup.sweep.expand import PlannedRun

CHECKPOINT = "checkpoint"
# of a repair: the model, the last and the best training state, what teachers said, where it began
OF_A_REPAIR = (CHECKPOINT, "state", "best", "scores", "start")


def drop_repaired_models(run: PlannedRun, runs: Sequence[PlannedRun], root: Path) -> None:
    """Remove what a finished run's repair weighs, unless the settings of another run name it."""
    folder = RunFolder(root / run.name).recover
    others = (dump_config(other.config) for other in runs if other.name != run.name)
    if not any(str(folder) in text for text in others):
        for name in OF_A_REPAIR:
            shutil.rmtree(folder / name, ignore_errors=True)


def drop_damaged_models(runs: Sequence[PlannedRun], root: Path) -> None:
    """Remove the models that the injuries left."""
    for run in runs:
        for step in run.config.degrade:
            shutil.rmtree(RunFolder(root / run.name).degrade(step.type) / CHECKPOINT, ignore_errors=True)
