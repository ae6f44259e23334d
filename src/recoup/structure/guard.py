"""The guard: an optimizer moves what trains while the model itself never leaves its structure.

    guard = Guard(model, structure)
    optimizer = torch.optim.AdamW(guard.parameters())
    loss.backward()                   # gradients at the projected weights, passed on to what trains
    optimizer.step()
    guard.project()                   # the model holds projected weights again

Instead of wrapping layers, the guard keeps what trains beside the model (see `trainable`), so forward passes and decoding cost
nothing extra, and the model can be saved or sampled from at any moment. A weight under a mask alone needs no
copy: its gradient is masked, and projecting is multiplying by the mask. A copy of the model in another type may compute
in its place (`listen`): its gradients are taken as the model's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recoup.errors import StructureError
from recoup.structure.spec import Constraint, Structure
from recoup.structure.trainable import Latent, LoRA, LowRank, Scales, Trainable, add_gradient

Training = Literal["weights", "lora", "scales"]
FREE = Constraint()  # of a weight that the structure does not name


class Guard:
    """Keeps `model` on `structure` while the weights that `plan` names train; the others are frozen.

    Args:
        model: what trains, in float32.
        structure: what it must keep; scales follow the weights where a constraint says `refit`.
        plan: how each weight trains, by parameter name; null: every weight in full.
        lora: rank and scale of the weights that train as `lora`.

    Raises:
        StructureError: the structure names a weight the model lacks, or of another shape; or a weight cannot train so.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        plan: Mapping[str, Training] | None = None,
        lora: LoRA | None = None,
    ) -> None:
        self._weights = dict(model.named_parameters())
        check_fits(self._weights, structure)
        constraints = {name: c.to(self._weights[name].device) for name, c in structure.constraints.items()}
        self.structure = Structure(constraints, structure.shapes)
        self._plan = dict.fromkeys(self._weights, "weights") if plan is None else dict(plan)
        self._trainables: dict[str, Trainable] = {}
        self._hooks: list[RemovableHandle] = []
        for name, weight in self._weights.items():
            weight.requires_grad_(name in self._plan)
        for position, name in enumerate(self._plan):
            self._prepare(name, lora and replace(lora, seed=lora.seed + position))

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the weights that train, whatever of them the optimizer moves."""
        return tuple(self._plan)

    def listen(self, copy: nn.Module) -> None:
        """Take the gradients of `copy`, whose parameters are named as the model's, as the model's own; the copy keeps none."""
        for name, weight in copy.named_parameters():
            weight.requires_grad_(name in self._plan)
            if name in self._plan:
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._taking(name)))

    def start_from(self, earlier: Mapping[str, Tensor]) -> int:
        """Let latent weights start where they were before rounding, for each that `earlier` rounds to; returns their number.

        Args:
            earlier: weights by parameter name, laid out as the model's, such as those of the model that was quantized.
        """
        return sum(
            trainable.start_from(earlier[name].to(weight), self.structure.constraints[name], weight)
            for name, trainable in self._trainables.items()
            if isinstance(trainable, Latent) and name in earlier
            for weight in (self._weights[name].detach(),)
        )

    def take(self, name: str, gradient: Tensor) -> None:
        """Mask a gradient of the weight `name`, in place, and give it to what trains."""
        constraint, trainable = self.structure.constraints.get(name, FREE), self._trainables.get(name)
        own = self._weights[name]
        if constraint.mask_OI is not None:
            constraint.view_OI(gradient).mul_(constraint.mask_OI)
        if trainable is not None:
            trainable.pull(gradient.to(own.dtype))
        else:
            add_gradient(own, gradient)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the optimizer moves, in a fixed order."""
        for name in self._plan:
            trainable = self._trainables.get(name)
            yield from trainable.tensors.values() if trainable else (self._weights[name],)

    @torch.no_grad()
    def project(self) -> None:
        """Lay into the model what its weights are after a step, on the structure."""
        constraints = dict(self.structure.constraints)
        for name in self._plan:
            trainable, constraint = self._trainables.get(name), constraints.get(name)
            if trainable is not None:
                moved, weight = trainable.constrained(constraint or FREE)
                self._weights[name].copy_(weight)
                constraints.update({name: moved} if constraint else {})
            elif constraint is not None:
                self._weights[name].copy_(constraint.project(self._weights[name]))
        self.structure = Structure(constraints, self.structure.shapes)

    def state(self) -> dict[str, Tensor]:
        """What trains beside the model's own weights, for a checkpoint."""
        return {
            f"{name}:{key}": tensor.detach()
            for name, trainable in self._trainables.items()
            for key, tensor in trainable.tensors.items()
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's `state`."""
        for name, trainable in self._trainables.items():
            for key, tensor in trainable.tensors.items():
                tensor.copy_(state[f"{name}:{key}"])
        self.project()

    def release(self) -> None:
        """Let go of the model: gradients stay with its weights again."""
        for hook in self._hooks:
            hook.remove()

    def _prepare(self, name: str, lora: LoRA | None) -> None:
        """Make what of the weight trains, and pass its gradients on."""
        weight, constraint = self._weights[name], self.structure.constraints.get(name, FREE)
        kind = self._plan[name]
        trainable: Trainable | None = None
        if kind == "lora":
            assert lora is not None, "a plan with lora needs its rank"
            trainable = LowRank(weight, lora)
        elif kind == "scales":
            trainable = Scales(weight, constraint)
        elif constraint.grid is not None:
            trainable = Latent(weight)
        if trainable is not None:
            self._trainables[name] = trainable
        if trainable is not None or constraint.mask_OI is not None:
            self._hooks.append(weight.register_post_accumulate_grad_hook(self._taking(name)))

    def _taking(self, name: str) -> Callable[[Tensor], None]:
        """A hook that takes a finished gradient off the weight that it came to."""

        def take(weight: Tensor) -> None:
            gradient, weight.grad = weight.grad, None
            assert gradient is not None, "called once a gradient is there"
            self.take(name, gradient)

        return take


def check_fits(weights: Mapping[str, Tensor], structure: Structure) -> None:
    """Refuse a structure that is not of these weights, by name.

    Raises:
        StructureError: it names a weight that is not there, or has a mask of another shape.
    """
    for name, constraint in structure.constraints.items():
        if name not in weights:
            raise StructureError(f"the structure constrains {name!r}, which this model does not have")
        mask_OI, shape = constraint.mask_OI, constraint.view_OI(weights[name]).shape
        if mask_OI is not None and mask_OI.shape != shape:
            raise StructureError(f"{name}: mask of shape {tuple(mask_OI.shape)} on a weight of {tuple(shape)}")
