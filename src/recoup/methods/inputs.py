"""What is repaired, and where the states are that may teach it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recoup.config import RunConfig, Term


@dataclass(frozen=True)
class RepairInputs:
    """The damaged student, and the states of its history: `model` and the types of the degrade steps."""

    student: str  # as `models.load` understands it
    states: Mapping[str, str]  # by name, where each can be loaded from

    def teachers(self, config: RunConfig, terms: Sequence[Term]) -> tuple[str, ...]:
        """Who teaches each term: a state of the run, a word of the repair's own (`ema`, `start`), or any model named there."""
        words = (term.teacher or config.before_last_injury for term in terms)
        return tuple(self.states.get(word, word) for word in words)
