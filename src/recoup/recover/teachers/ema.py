"""The student's exponential moving average as its teacher (Mean Teacher, arXiv 1703.01780; SDFT, 2601.19897).

After every n steps shadow ← (1 − rate) shadow + rate W; the shadow begins at the student's weights.

- What is averaged are the weights W as the model holds them, projected and with low-rank updates merged in: the mean of
  products B A, not the product of mean factors, which is another model.
- The mean of points on a grid lies off it. The average is a teacher and no artefact: it is never saved as a model.
- The shadow is float32: at rate 0.02 a step of 1e-5 moves a weight of 0.05 by 4e-6 of itself, and bf16 tells 4e-3 apart.

Cost: one fp32 copy of what trains, and one in the compute type unless that is fp32; nothing of what is frozen. Where processes
share out the student's rows, they share out the fp32 copy as well, and the other is gathered.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from recoup.models.load import LanguageModel
from recoup.recover.teachers.base import bytes_of
from recoup.recover.teachers.borrowed import Borrower, copied
from recoup.structure.shards import fill, local, whole


class Average(Borrower):
    """The moving average of a student.

    Args:
        student: the model that trains, in float32.
        twin: its compute copy, or the student itself.
        trained: names of the parameters that train.
        rate: share of the student that enters at each update, in (0, 1).
        every: steps between updates.
    """

    identity = None

    def __init__(
        self, student: LanguageModel, twin: LanguageModel, trained: tuple[str, ...], rate: float, every: int
    ) -> None:
        super().__init__("ema", twin)
        self._student, self._rate, self._every = student, rate, every
        self._shadow = copied(student.model, trained, torch.float32)
        self._values = self._in_compute_type()

    def values(self) -> Mapping[str, Tensor]:
        """The average in the compute type; written anew after an update only."""
        return self._values

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take in the student's present weights, if it is time: at steps n − 1, 2 n − 1, … counted from 0."""
        if (step + 1) % self._every:
            return
        weights = dict(self._student.model.named_parameters())
        for name, mean in self._shadow.items():
            local(mean).lerp_(local(weights[name]).float(), self._rate)
        self._refresh()

    def state(self) -> dict[str, Tensor]:
        """The fp32 average, by parameter name."""
        return dict(self._shadow)

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved average: the next scores and updates are those of the unstopped run, bit for bit."""
        assert state.keys() == self._shadow.keys(), "the average of another plan of what trains"
        for name, mean in self._shadow.items():
            fill(mean, state[name])
        self._refresh()

    def memory_bytes(self) -> int:
        """The fp32 copy, and the one that is laid into the twin where that is another."""
        return bytes_of([*map(local, self._shadow.values()), *self._values.values()])

    def _in_compute_type(self) -> dict[str, Tensor]:
        dtype = self.twin.model.dtype
        if any(isinstance(mean, DTensor) for mean in self._shadow.values()):
            # no gathering here, where processes may come one by one: the twin was rounded from these very weights
            return copied(self.twin.model, tuple(self._shadow), dtype)
        return {name: mean.to(dtype) for name, mean in self._shadow.items()}

    def _refresh(self) -> None:
        """The copies follow in place; in fp32 they are the shadow itself."""
        for name, value in self._values.items():
            if value is not self._shadow[name]:
                value.copy_(whole(self._shadow[name]))
