"""The steps of a repair: recorded, looked at, checkpointed, and taken again from a checkpoint where they failed."""

from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import fmean

from recoup.errors import TrainingError
from recoup.progress import Progress
from recoup.recover.live import LiveView
from recoup.recover.loaded import Repair
from recoup.recover.record import Record, texts
from recoup.recover.state import RunState
from recoup.recover.trackers import Log, open_trackers
from recoup.results import RecoverStep


def train(repair: Repair, last: int, progress: Progress) -> None:
    """Steps from the last checkpoint, or from the start, until `last` are taken, the budget is spent or the looks say enough.

    Raises:
        TrainingError: the loss became NaN or the student collapsed, more often than `guards` allows.
    """
    trainer, record, state = repair.trainer, Record(repair.folder), RunState(repair)
    state.load()
    _keep(repair, record)
    live = LiveView()
    with _trackers(repair) as log:
        seen = _look(repair)
        if seen:
            log(trainer.position.step, seen)
            state.save_if_due()
        while trainer.position.step < last and not trainer.finished():
            metrics = _step(repair, record)
            if metrics is None:
                state.go_back()
                _keep(repair, record)
                continue
            fresh = _look(repair)
            seen = fresh or seen
            log(metrics.step, metrics.model_dump() | fresh)
            progress(live.label(metrics.model_dump() | seen), metrics.step + 1, trainer.config.steps)
            state.save_if_due()


def _look(repair: Repair) -> dict[str, object]:
    """Look at the student if it is time; the figures that trackers and terminal show."""
    trainer, position = repair.trainer, repair.trainer.position
    if repair.prober is None or not repair.prober.due(position.looks, position.step, trainer.config.steps):
        return {}
    looks, seen = repair.prober.look(trainer.parts.compute.model, position.looks, position.step)
    trainer.position = replace(position, looks=looks)
    return {
        "held_out_kl": seen.token_kl_nats.value,
        "held_out_top1": seen.top1_agreement.value,
        "cka": fmean(seen.linear_cka),
        "cka_min": min(seen.linear_cka),
    }


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
    if repair.prober is not None:
        repair.prober.keep(repair.trainer.position.looks.last)


def _trackers(repair: Repair) -> AbstractContextManager[Log]:
    config = repair.trainer.config
    step = repair.trainer.position.step
    return open_trackers(config.trackers, repair.folder, repair.folder.parent.name, config.model_dump(), step)
