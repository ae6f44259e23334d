"""The whole job: degrade → diagnose → recover → diagnose → evaluate → report. Read this first.

A stage is `run(config, inputs, folder) -> frozen result`, and the next stage gets that result. A stage whose `result.json`
is there is done and is not run again, so a stopped run goes on where it stopped when it is started again.

Under `accelerate launch` all processes walk through the stages together: the repair is shared out, process 0 does the rest.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

from recoup.config import RunConfig
from recoup.config_file import dump_config
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.diagnose.run import DiagnoseInputs
from recoup.diagnose.run import run as diagnose
from recoup.errors import RunFolderError
from recoup.evaluate.run import EvaluateInputs
from recoup.evaluate.run import run as evaluate
from recoup.methods.run import RepairInputs
from recoup.methods.run import run as repair
from recoup.progress import Progress, silent
from recoup.provenance import collect
from recoup.report import write_report
from recoup.results import DegradeResult, DiagnoseResult, EvaluateResult, RecoverResult, Result
from recoup.run_folder import RunFolder, alone_in, make_folder, result_path, write_json, write_text
from recoup.training.processes import all_processes

R = TypeVar("R", bound=Result)


def run(config: RunConfig, folder: RunFolder, progress: Progress = silent) -> EvaluateResult:
    """Run every stage that is not done yet; returns the proof, and leaves the report in `folder.report`.

    Raises:
        RecoupError: whatever a stage raises, before which nothing of that stage is called done; or another process is at work
            in this folder.
    """
    with ExitStack() as held:
        all_processes().on_main(lambda: held.enter_context(alone_in(folder.root)))
        return _run(config, folder, progress)


def _run(config: RunConfig, folder: RunFolder, progress: Progress) -> EvaluateResult:
    all_processes().on_main(partial(open_run, config, folder))
    states = _degrade(config, folder, progress)
    student = config.student or list(states.values())[-1]
    reference = states[config.evaluate.reference or config.before_last_injury]

    diagnosis = DiagnoseInputs(reference, student, config.seed, config.chat_template, "held_out")
    _stage(DiagnoseResult, folder.diagnose("before"), partial(diagnose, config.diagnose, diagnosis, progress=progress))
    work = partial(repair, config, RepairInputs(student, states), progress=progress)
    recovered = _stage(RecoverResult, folder.recover, work, together=True)
    if recovered.checkpoint == student:  # nothing was repaired, so nothing has changed
        all_processes().on_main(partial(_same_result, folder.diagnose("before"), folder.diagnose("after")))
    check = DiagnoseInputs(reference, recovered.checkpoint, config.seed, config.chat_template, "held_out")
    _stage(DiagnoseResult, folder.diagnose("after"), partial(diagnose, config.diagnose, check, progress=progress))
    proof = EvaluateInputs(reference, student, recovered.checkpoint, config.chat_template)
    result = _stage(EvaluateResult, folder.evaluate, partial(evaluate, config.evaluate, proof, progress=progress))
    all_processes().on_main(partial(write_report, folder))
    return result


def open_run(config: RunConfig, folder: RunFolder) -> None:
    """Make the run's folder and write what it will do; a folder that holds another run is left alone.

    Raises:
        RunFolderError: the folder cannot be written, or holds a run with another config.
    """
    make_folder(folder.root)
    text = dump_config(config)
    if not folder.config.is_file():
        write_text(folder.config, text)
        write_json(folder.provenance, collect(config))
    elif folder.config.read_text(encoding="utf-8") != text:
        raise RunFolderError(f"{folder.root}: holds a run with another config; choose another --output, or remove it")


def _degrade(config: RunConfig, folder: RunFolder, progress: Progress) -> dict[str, str]:
    """Every state of the model's history by name: `model`, then one per injury; each is where it can be loaded from."""
    states = {"model": config.model}
    for step in config.degrade:
        inputs = DegradeInputs(list(states.values())[-1], config.seed, config.chat_template)
        work = partial(degrade, step, inputs, progress=progress)
        result = _stage(DegradeResult, folder.degrade(step.type), work)
        states[step.type] = result.checkpoint
    return states


def _same_result(of: Path, stage: Path) -> None:
    """Let a stage that would repeat another have its result."""
    if not result_path(stage).is_file():
        write_text(result_path(stage), result_path(of).read_text(encoding="utf-8"))


def _stage(kind: type[R], folder: Path, work: Callable[[Path], R], *, together: bool = False) -> R:
    """The stage's result: worked out if it is not done, by all processes `together` or by process 0, and read."""
    done, processes = result_path(folder), all_processes()
    if not processes.share(done.is_file()):
        work(folder) if together else processes.on_main(partial(work, folder))
    return kind.read(done)
