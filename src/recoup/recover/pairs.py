"""Student and teacher blocks that a hidden-state term compares, captured during their forward passes."""

from contextlib import ExitStack

from torch import Tensor
from transformers import PreTrainedModel

from recoup.config import HiddenStates
from recoup.models.layers import blocks, paired_blocks
from recoup.models.sample import Rollouts
from recoup.recover.hidden_term import chosen_layers, completion_states, hidden_term

States = dict[int, Tensor]


class BlockPairs:
    """Which blocks are compared, and how.

    Raises:
        ConfigError: the settings name a block that the student does not have.
    """

    def __init__(self, settings: HiddenStates, student: PreTrainedModel) -> None:
        self._settings, self._student = settings, student
        self._layers = chosen_layers(settings.layers, len(blocks(student)))

    def of_student(self, watched: ExitStack, rollouts: Rollouts) -> States:
        """The student's states, once it has run on `rollouts` inside `watched`."""
        return watched.enter_context(completion_states(self._student, self._layers, rollouts))

    def of_teacher(self, watched: ExitStack, teacher: PreTrainedModel, rollouts: Rollouts) -> States:
        """The teacher's."""
        partners = paired_blocks(len(blocks(self._student)), len(blocks(teacher)))
        layers = [partners[index] for index in self._layers]
        return watched.enter_context(completion_states(teacher, layers, rollouts))

    def loss(self, mine: States, theirs: States, weights_N: Tensor) -> Tensor | None:
        """The weighted term of this micro-batch, differentiable to the student; null where it has too few tokens or no teacher.

        Both sides are sorted by block: they were chosen in pairs of equal relative depth.
        """
        if not theirs:
            return None
        student, teacher = ([states[index] for index in sorted(states)] for states in (mine, theirs))
        found = hidden_term(self._settings.measure, student, teacher, weights_N)
        return None if found is None else self._settings.weight * found
