"""One optimizer step on fp32 weights, through the guard, via accelerate.

accelerate places the optimizer and sums gradients over processes; the guard says what trains, and lays the projected weights into
the model after the step (see `structure.guard`). The learning rate is a pure function of the step, so a resumed run needs
no scheduler state.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, patch_environment
from torch import Tensor

from recoup.errors import TrainingError
from recoup.structure.guard import Guard
from recoup.training import optimizers
from recoup.training.processes import ALONE, Processes
from recoup.training.sharding import RowGuard


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine."""

    steps: int
    warmup_steps: int
    learning_rate: float  # peak
    min_learning_rate_fraction: float = 0.0  # of the peak, at the last step


def learning_rate(schedule: Schedule, step: int, spent: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: rises over `warmup_steps`, is at its peak there, ends at the minimum.

    Args:
        schedule: its shape.
        step: counted from 0.
        spent: share of the run's budget, which ends the decay where it is ahead of the steps.
    """
    if step < schedule.warmup_steps:
        return schedule.learning_rate * (step + 1) / (schedule.warmup_steps + 1)
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - 1 - schedule.warmup_steps)
    cosine = (1 + math.cos(math.pi * min(1.0, max(progress, spent)))) / 2
    floor = schedule.min_learning_rate_fraction
    return schedule.learning_rate * (floor + (1 - floor) * cosine)


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken."""

    precision: Literal["bf16", "fp32"] = "bf16"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: optimizers.OptimizerName = "adamw"


class Stepper:
    """Owns the optimizer of what a guard lets train, in fp32; gradients add up until `step`."""

    def __init__(self, guard: Guard, settings: StepSettings, processes: Processes = ALONE) -> None:
        # accumulation is ours: micro-batches differ in tokens, and each loss is already its share of the batch's
        # and so is autocast: accelerate fixes one precision per process, but a run fine-tunes and recovers in its own
        # and so is sharding: accelerate's would wrap a model that computes with its shards
        with patch_environment(ACCELERATE_USE_FSDP="false"):
            self.accelerator = Accelerator(
                mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
            )
        self._settings = settings
        self._guard, self._processes = guard, processes
        self._rows = guard if isinstance(guard, RowGuard) else None
        self._parameters = list(guard.parameters())
        assert self._parameters, "no weight to train"
        self.optimizer = self.accelerator.prepare(
            optimizers.build(settings.optimizer, self._parameters, settings.weight_decay)
        )

    def autocast(self) -> AbstractContextManager[None]:
        """Context that forward passes run in."""
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self._settings.precision == "bf16")

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's share of the loss.

        Raises:
            TrainingError: the loss is NaN or infinite; of several processes none raises here, lest the others wait for
                it: `step` finds the gradient's norm, of which all know.
        """
        if self._processes.number == 1 and not torch.isfinite(loss):
            raise TrainingError(f"the loss is {loss.item()}; lower learning_rate, or set precision: fp32")
        self.accelerator.backward(loss)

    def step(self, rate: float) -> float:
        """Sum over processes, clip, step at learning rate `rate`, project, clear the gradients.

        Returns:
            The gradient's norm before clipping.

        Raises:
            TrainingError: the gradient norm is NaN or infinite; no weight was changed.
        """
        norm = self._sum_and_clip()
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient norm is {norm}; lower learning_rate, or set precision: fp32")
        optimizers.set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self._guard.project()
        self.forget_gradients()
        return norm

    def forget_gradients(self) -> None:
        """Start the next step's gradients anew."""
        self.optimizer.zero_grad()
        if self._rows:
            self._rows.forget()

    @property
    def num_trained(self) -> int:
        """Numbers that the optimizer moves; of all processes, where they share them out."""
        return self._rows.num_trained if self._rows else sum(parameter.numel() for parameter in self._parameters)

    def optimizer_bytes(self) -> int:
        """Memory of the optimizer's state in this process, once a step was taken."""
        return optimizers.state_bytes(self.optimizer)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter position, for a checkpoint."""
        tensors = optimizers.state_tensors(self.optimizer)
        return self._rows.spread(tensors) if self._rows else tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        optimizers.load_state_tensors(self.optimizer, self._rows.cut(tensors) if self._rows else tensors)

    def _sum_and_clip(self) -> float:
        most = self._settings.max_grad_norm
        if self._rows:
            self._rows.collect(self._processes)
            return self._rows.clip(most, self._processes)
        self._processes.sum_gradients(self._parameters)
        return float(self.accelerator.clip_grad_norm_(self._parameters, most))
