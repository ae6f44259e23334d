"""The student as it was before the repair, without a second copy: only what trains is held, as it was.

With LoRA, norms, scales or some layers that is a small part of the model in the compute type; with every weight it is a
whole model in bf16. A weight that trains under LoRA is held as well, though `trainable.LowRank` keeps its fp32 start: in bf16
that start would have to be rounded anew into as much memory for every score.
"""

from collections.abc import Mapping

from torch import Tensor

from recoup.models.load import LanguageModel
from recoup.recover.teachers.base import bytes_of, fingerprint
from recoup.recover.teachers.borrowed import Borrower, copied


class Start(Borrower):
    """The student at the moment this is made: before the first step, and before a checkpoint is laid in.

    Args:
        twin: the student's compute copy.
        trained: names of the parameters that train.
    """

    def __init__(self, twin: LanguageModel, trained: tuple[str, ...]) -> None:
        super().__init__("start", twin)
        dtype = twin.model.dtype
        self._values = copied(twin.model, trained, dtype)
        self.identity = fingerprint(twin.model)

    def values(self) -> Mapping[str, Tensor]:
        """What trains, as it was."""
        return self._values

    def memory_bytes(self) -> int:
        """One copy of what trains, in the compute type."""
        return bytes_of(self._values.values())
