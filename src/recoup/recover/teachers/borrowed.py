"""Teachers that speak through the student's compute copy ("adapter-off"): no second model is held.

Only the values of what trains differ between such a teacher and the student. They are laid into the compute copy by exchanging
pointers (`Parameter.data`), nothing is copied, and the student's own come back bit for bit, also after an error.

The compute copy is any model whose parameters are named as the student's: its bf16 twin, or the student itself in fp32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recoup.divergence import Head
from recoup.models.hidden import head_of
from recoup.models.load import LanguageModel
from recoup.models.logits import output_head
from recoup.recover.teachers.base import Teacher, frozen_head


@contextmanager
def lent(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the `with`, `model` computes with `values`, by parameter name, in evaluation mode; then as before.

    The values must have the type, shape and device of the parameters they stand in for.
    """
    parameters = dict(model.named_parameters())
    own = {name: parameters[name].data for name in values}
    training = model.training
    try:
        if training:  # dropout, and gradient checkpointing in transformers, belong to the student's own pass
            model.eval()
        for name, value in values.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in own.items():
            parameters[name].data = value
        if training:
            model.train()


class Borrower(Teacher):
    """A teacher whose `values`, by parameter name, are laid into the student's compute copy `twin` when it speaks."""

    def __init__(self, name: str, twin: LanguageModel) -> None:
        self.name, self.twin = name, twin
        self.num_shared = len(head_weight(twin))
        self._formula = head_of(twin.model)

    def values(self) -> Mapping[str, Tensor]:
        """What to lay in, in the twin's type."""
        raise NotImplementedError

    @contextmanager
    def model(self) -> Iterator[LanguageModel]:
        """The twin with this teacher's values in it."""
        with lent(self.twin.model, self.values()):
            yield self.twin

    def head(self) -> Head:
        """The formula of the student's head around this teacher's weight."""
        module = output_head(self.twin.model)
        with lent(self.twin.model, self.values()):
            bias = getattr(module, "bias", None)
            return frozen_head(Head(head_weight(self.twin), bias, self._formula.scale, self._formula.softcap))


def head_weight(model: LanguageModel) -> Tensor:
    """The output head's weight, vocabulary × width."""
    weight = output_head(model.model).weight
    assert isinstance(weight, Tensor), "a head is a linear layer"
    return weight


@torch.no_grad()
def copied(model: nn.Module, names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies of the parameters of these names, in `dtype`."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().to(dtype, copy=True) for name in names}
