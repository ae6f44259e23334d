"""A checkpoint that does not change: an earlier state of the student, or any model with its tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager

from recoup.divergence import Head
from recoup.models.hidden import head_of
from recoup.models.load import LanguageModel
from recoup.recover.teachers.base import Teacher, bytes_of, fingerprint, frozen_head, held_tensors
from recoup.recover.teachers.held import Hold, held


class Frozen(Teacher):
    """A loaded checkpoint, its weights held as `hold` says.

    Raises:
        SourceError: the model has no output head, or one that is no known formula.
    """

    def __init__(self, checkpoint: LanguageModel, num_shared: int, hold: Hold = "plain") -> None:
        self.name, self.num_shared = checkpoint.name, num_shared
        self.identity = f"{fingerprint(checkpoint.model)} {hold}"
        self._head = frozen_head(head_of(checkpoint.model))
        held(checkpoint.model, hold)
        self._checkpoint = checkpoint

    @contextmanager
    def model(self) -> Iterator[LanguageModel]:
        """The checkpoint."""
        yield self._checkpoint

    def head(self) -> Head:
        """The checkpoint's own."""
        return self._head

    def memory_bytes(self) -> int:
        """All its weights, in whichever memory they are."""
        return bytes_of(held_tensors(self._checkpoint.model))
