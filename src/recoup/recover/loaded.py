"""A repair as the rest of the stage gets it."""

from dataclasses import dataclass
from pathlib import Path

from recoup.models.load import LanguageModel
from recoup.recover.probe import Prober
from recoup.recover.teachers import Teacher
from recoup.recover.trainer import Trainer
from recoup.structure.guard import Guard
from recoup.training.processes import Processes


@dataclass(frozen=True)
class Repair:
    """A repair, loaded and ready to step."""

    student: LanguageModel  # fp32 weights, on the structure
    guard: Guard
    teachers: tuple[Teacher, ...]
    trainer: Trainer
    folder: Path
    prober: Prober | None = None

    @property
    def processes(self) -> Processes:
        """Who takes part."""
        return self.trainer.parts.processes
