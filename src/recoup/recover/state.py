"""What a stopped recovery continues from, and what it goes back to when the student collapses.

Beside weights and optimizer: the position, rollouts that were drawn and not used yet, and teachers that move.

`state/` is the last checkpoint. Where a probe keeps the best student, `best/` is the checkpoint of the best look so far: what a
collapsed run goes back to, and what the run ends with. It is never newer than `state/`, and shares its files while they are
one.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from recoup.errors import TrainingError
from recoup.models.sample import pad_id
from recoup.recover import teachers as teaching
from recoup.recover.dealing import dealt, together
from recoup.recover.loaded import Repair
from recoup.recover.position import Position
from recoup.run_folder import atomic_folder
from recoup.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

ROLLOUTS, TEACHERS = "rollouts", "teachers"
LAST, BEST = "state", "best"  # folders


class RunState:
    """The checkpoint of a repair, in the stage's folder."""

    def __init__(self, repair: Repair) -> None:
        self._repair, self._trainer = repair, repair.trainer
        self._folder, self._best = repair.folder / LAST, repair.folder / BEST
        self._keeps_best = repair.prober is not None and repair.prober.settings.keep_best

    def load(self) -> None:
        """Lay the last checkpoint, if any, into the repair."""
        self._load(self._folder)
        self._mark_if_best()  # the run may have been killed just before

    def _load(self, folder: Path) -> None:
        repair, trainer = self._repair, self._trainer
        found = load_checkpoint(folder, repair.student.model, repair.guard, trainer.parts.stepper)
        if found is None:
            return
        saved, extra = found
        trainer.position = Position.from_dict(saved["position"])
        trainer.micro_batch_size = saved["micro_batch_size"]
        teaching.load_state(repair.teachers, extra[TEACHERS])
        rollouts, device = dealt(extra[ROLLOUTS], repair.processes), repair.student.device
        trainer.buffer.load_state({name: tensor.to(device) for name, tensor in rollouts.items()}, saved["buffer"])
        trainer.parts.compute.follow()

    def save_if_due(self) -> None:
        """Save a checkpoint every so many steps, at the end, and of the best student so far."""
        position, config = self._trainer.position, self._trainer.config
        regular = position.step > 0 and position.step % config.checkpoint_every == 0
        ended = position.step == config.steps or position.looks.stopped is not None
        if regular or ended or self._is_best():
            self._save()
            self._mark_if_best()

    def end_with_best(self) -> int:
        """Lay the best student into the repair where it is another than the last; returns the step it was seen at."""
        position = self._trainer.position
        if not self._keeps_best or self._is_best() or not has_checkpoint(self._best):
            return position.step
        load_checkpoint(self._best, self._repair.student.model, self._repair.guard, self._trainer.parts.stepper)
        self._trainer.parts.compute.follow()
        assert position.looks.best is not None, "a best student was seen"
        return position.looks.best

    def refuse_to_go_back(self, wrong: str) -> None:
        """Raise where the run may not go back once more.

        Raises:
            TrainingError: it went back as often as `guards` allows, or there is no checkpoint yet.
        """
        most, times = self._trainer.config.guards.max_roll_backs, self._trainer.position.roll_backs
        if times >= most:
            raise TrainingError(f"{wrong} (after {times} roll-backs of at most {most}); the last checkpoint stays")
        if not has_checkpoint(self._folder):
            raise TrainingError(f"{wrong}; there is no checkpoint yet to go back to: lower learning_rate")

    def go_back(self) -> None:
        """Lay the best student's checkpoint in, or the last one, to go on from it with a smaller learning rate."""
        times = self._trainer.position.roll_backs
        self._trainer.parts.stepper.forget_gradients()
        self._trainer.buffer.drop()
        self._load(self._best if self._keeps_best and has_checkpoint(self._best) else self._folder)
        self._trainer.position = replace(self._trainer.position, roll_backs=times + 1)

    def _is_best(self) -> bool:
        """Whether the student, as it is, is the best that was seen."""
        position = self._trainer.position
        return self._keeps_best and position.looks.best == position.step

    def _mark_if_best(self) -> None:
        """The last checkpoint is also the best student's."""
        processes = self._repair.processes
        if self._is_best() and processes.is_main:
            with atomic_folder(self._best) as temporary:
                for path in self._folder.iterdir():
                    _share(path, temporary / path.name)
        processes.wait()

    def _save(self) -> None:
        repair, trainer = self._repair, self._trainer
        tensors, record = trainer.buffer.state(trainer.position.step)
        shares = repair.processes.gather([{name: tensor.cpu() for name, tensor in tensors.items()}])
        saved = {
            "position": trainer.position.to_dict(),
            "micro_batch_size": trainer.micro_batch_size,
            "buffer": record,  # the same in every process: what is held of which step depends on the step alone
        }
        extra = {ROLLOUTS: together(shares, pad_id(repair.student)), TEACHERS: teaching.state(repair.teachers)}
        trained = (repair.student.model, repair.guard, trainer.parts.stepper)
        save_checkpoint(self._folder, trained, saved, extra, repair.processes)
        repair.processes.wait()


def _share(source: Path, target: Path) -> None:
    """One file under two names; a copy where the disk cannot do that. Checkpoints are replaced, never written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
