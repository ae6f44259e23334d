"""recoup's own sampler, on a copy of the student in the type that it samples in, or on the student itself."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from recoup.models.backends.base import Setup
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.structure.shards import whole


class Twin:
    """The student as it samples: itself where type and timing allow it, else a copy that follows its weights."""

    def __init__(self, setup: Setup) -> None:
        self._student = setup.student
        shared = setup.student.model.dtype == setup.dtype and not setup.snapshot
        self.model = setup.student if shared else replace(setup.student, model=copied(setup.student.model, setup.dtype))

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the student's present weights."""
        if self.model is not self._student:
            pairs = zip(self.model.model.parameters(), self._student.model.parameters(), strict=True)
            for mine, theirs in pairs:
                mine.copy_(theirs)


class Native(Twin):
    """Sampling by `recoup.models.sample`."""

    def sample(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
        """Complete every prompt."""
        return sample(self.model, prompts, settings)


def copied(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A frozen copy whose parameters have type `dtype`; ties stay ties, and rows shared out over processes are gathered.

    Buffers keep their type: rotary frequencies in bf16 would turn late positions by the wrong angle. Neither gradients
    nor hooks are copied.
    """
    memo = {
        id(p): nn.Parameter(whole(p.detach()).to(dtype, copy=True), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
