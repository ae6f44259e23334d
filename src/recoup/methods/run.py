"""The repair of a run, by whichever method it names (`config.methods`): trained by `recover`, or without training by `free`.

    result = run(config, RepairInputs(student, states), folder)

Every method starts from the damaged student and leaves a `RecoverResult`, so that diagnosis, proof and report need not know which
it was.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from recoup.config import Recover, RunConfig
from recoup.config.methods import AFTER, FREE, Method
from recoup.errors import ConfigError
from recoup.methods.free import chosen, unchanged
from recoup.methods.inputs import RepairInputs
from recoup.progress import Progress, silent
from recoup.recover.run import RecoverInputs
from recoup.recover.run import run as recover
from recoup.results import RecoverResult
from recoup.run_folder import result_path
from recoup.training.memory import forget_peak_memory
from recoup.training.processes import all_processes


def run(config: RunConfig, inputs: RepairInputs, folder: Path, progress: Progress = silent) -> RecoverResult:
    """Repair the student and write `result.json`, last and atomically; the repaired model is where it says.

    Under `accelerate launch` every process calls this; a method without training is the work of process 0.

    Args:
        config: of the run; `method`, `task_file`, `recover`, `seed` and `chat_template` are read.
        inputs: the student and its history.
        folder: of the stage. A stopped repair that trains goes on there, one without training starts over.
        progress: told how far it is.

    Raises:
        ConfigError: the method does not fit this student.
        RecoupError: whatever the method raises, before which nothing is called done.
    """
    forget_peak_memory()  # of the stages before, which a resumed run would not count
    work = METHODS[config.method]
    if config.method not in FREE:
        return work(config, inputs, folder, progress)
    all_processes().on_main(partial(work, config, inputs, folder, progress))
    return RecoverResult.read(result_path(folder))


def _trained(
    config: RunConfig, inputs: RepairInputs, folder: Path, progress: Progress, first: RecoverResult | None = None
) -> RecoverResult:
    """The repair with the objective of `config.method`; where another came `first`, from its student and for what it left."""
    settings = config.repair
    teachers = inputs.teachers(config, settings.terms)
    student = first.checkpoint if first else inputs.student
    rounded = (
        None if first else inputs.states[config.before_last_injury]
    )  # what a repair compressed anew was not rounded
    pupil = RecoverInputs(student, teachers, config.seed, config.chat_template, config.method, first, rounded)
    return recover(_less(settings, first) if first else settings, pupil, folder, progress)


def _trained_after(config: RunConfig, inputs: RepairInputs, folder: Path, progress: Progress) -> RecoverResult:
    """From the student that a method without training leaves in `folder/start`, for what that leaves of the budget."""
    free, processes = config.model_copy(update={"method": AFTER[config.method]}), all_processes()
    if not processes.share(result_path(folder / "start").is_file()):
        processes.on_main(partial(chosen, free, inputs, folder / "start", progress))
    return _trained(config, inputs, folder, progress, RecoverResult.read(result_path(folder / "start")))


def _less(settings: Recover, first: RecoverResult) -> Recover:
    """The settings with so much less to spend as the first repair took."""
    budget = settings.budget
    if budget is None or budget.seconds is None:
        return settings
    if budget.seconds <= first.seconds:
        raise ConfigError(
            f"recover.budget.seconds {budget.seconds:g}: {first.method} alone took {first.seconds:.0f} s; raise it, or choose "
            f"method {first.method}"
        )
    left = budget.model_copy(update={"seconds": budget.seconds - first.seconds})
    return settings.model_copy(update={"budget": left})


METHODS: dict[Method, Callable[[RunConfig, RepairInputs, Path, Progress], RecoverResult]] = {
    "none": unchanged,
    "interpolate": chosen,
    "svd_repair": chosen,
    "rounding": chosen,
    "sft": _trained,
    "sft_kl": _trained,
    "replay": _trained,
    "lora": _trained,
    "kd_offpolicy": _trained,
    "sdft": _trained,
    "onpolicy": _trained,
    "onpolicy_cka": _trained,
    "onpolicy_interpolated": _trained_after,
    "onpolicy_rounded": _trained_after,
}
