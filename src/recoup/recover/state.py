"""What a stopped recovery continues from, and what it goes back to when the student collapses.

Beside weights and optimizer: the position, rollouts that were drawn and not used yet, and teachers that move.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from recoup.errors import TrainingError
from recoup.models.sample import pad_id
from recoup.recover import teachers as teaching
from recoup.recover.dealing import dealt, together
from recoup.recover.position import Position
from recoup.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from recoup.recover.run import Repair

ROLLOUTS, TEACHERS = "rollouts", "teachers"


class RunState:
    """The checkpoint of a repair, in the stage's folder."""

    def __init__(self, repair: "Repair") -> None:
        self._repair, self._trainer = repair, repair.trainer
        self._folder = repair.folder / "state"

    def load(self) -> None:
        """Lay the last checkpoint, if any, into the repair."""
        repair, trainer = self._repair, self._trainer
        found = load_checkpoint(self._folder, repair.student.model, repair.guard, trainer.parts.stepper)
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
        """Save a checkpoint every so many steps, and at the end."""
        step, config = self._trainer.position.step, self._trainer.config
        if step % config.checkpoint_every == 0 or step == config.steps:
            self._save()

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
        """Lay the last checkpoint in, to go on from it with a smaller learning rate."""
        times = self._trainer.position.roll_backs
        self._trainer.parts.stepper.forget_gradients()
        self._trainer.buffer.drop()
        self.load()
        self._trainer.position = replace(self._trainer.position, roll_backs=times + 1)

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
