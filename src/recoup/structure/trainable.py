"""What of a constrained weight trains: its latent copy, a low-rank update inside the structure, or the grid's scales.

The model always holds the projected weight W. A trainable says how W comes from the tensors that an optimizer moves, and
turns the gradient of W into theirs. That gradient passes through the projection unchanged (straight-through estimation,
arXiv 1308.3432), so the chain rule is one or two lines, no autograd graph is built, and the gradient of W itself is
freed as soon as it has been pulled:

- `Latent`: W = project(L); dL = dW.
- `LowRank`: W = project(W0 + s B A) (LoRA, 2106.09685, inside the structure): dB = s dW Aᵀ, dA = s Bᵀ dW. Merging it is
  what the model does after every step, so a merged model is the trained one bit for bit.
- `Scales`: W = scale · code with the codes fixed: d scale = sum over the group of dW · code (as mlx-lm's DWQ trains).

Optimizer memory with AdamW, bytes per weight: 4 (latent) + 8 (moments); 12 (O + I) r / (O I) + 4 for W0; 12 / S.

Shapes: O output width, I input width, R rank, G groups along the input.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recoup.errors import StructureError
from recoup.structure.grids.base import grouped
from recoup.structure.spec import Constraint


@dataclass(frozen=True)
class LoRA:
    """A low-rank update: rank R, update scaled by `alpha_per_rank` (alpha / R), and the seed of A's first values."""

    rank: int
    alpha_per_rank: float = 2.0  # LoRA's own setting for GPT-2 (2106.09685, appendix D): alpha 32 at rank 16
    seed: int = 0


class Trainable(ABC):
    """How one weight comes from the tensors an optimizer moves."""

    tensors: dict[str, nn.Parameter]
    rowless: frozenset[str] = frozenset()  # of these, what has no row per row of the weight

    @abstractmethod
    def pull(self, gradient: Tensor) -> None:
        """Add what `gradient`, of the weight as the model lays it out, means for `tensors` to their gradients."""

    @abstractmethod
    def constrained(self, constraint: Constraint) -> tuple[Constraint, Tensor]:
        """The constraint as it now is, and the weight on it."""


class Latent(Trainable):
    """A full copy that moves freely; the model holds its projection."""

    def __init__(self, weight: Tensor) -> None:
        self.tensors = {"latent": nn.Parameter(weight.detach().clone())}

    @torch.no_grad()
    def start_from(self, earlier: Tensor, constraint: Constraint, weight: Tensor) -> bool:
        """Start at the weight that was rounded, where rounding it gives `weight` to the bit; whether it does.

        A weight on the grid has half a step to go before its code moves; one that was rounded has mostly less.
        """
        if earlier.shape != weight.shape or not torch.equal(_projected(constraint, earlier)[1], weight):
            return False
        self.tensors["latent"].copy_(earlier)
        return True

    def pull(self, gradient: Tensor) -> None:
        """The gradient itself, taken over and not copied."""
        add_gradient(self.tensors["latent"], gradient)

    def constrained(self, constraint: Constraint) -> tuple[Constraint, Tensor]:
        """Scales follow the latent weight where the constraint says so."""
        return _projected(constraint, self.tensors["latent"].detach())


class LowRank(Trainable):
    """An update of rank R to the weight as it was; the model holds the projection of the sum."""

    rowless = frozenset({"lora_A"})

    def __init__(self, weight: Tensor, lora: LoRA) -> None:
        rows, columns = weight.shape
        generator = torch.Generator().manual_seed(lora.seed)
        bound = 1 / math.sqrt(columns)  # Kaiming uniform with a = sqrt(5), as LoRA's own code starts A; B starts at 0
        a_RI = (torch.rand(lora.rank, columns, generator=generator) * 2 - 1) * bound
        b_OR = torch.zeros(rows, lora.rank)
        self.tensors = {name: nn.Parameter(t.to(weight.device)) for name, t in (("lora_A", a_RI), ("lora_B", b_OR))}
        self._start = weight.detach().clone()
        self._scaling = lora.alpha_per_rank

    def pull(self, gradient: Tensor) -> None:
        """DA = s Bᵀ dW, dB = s dW Aᵀ."""
        a_RI, b_OR = self.tensors["lora_A"], self.tensors["lora_B"]
        add_gradient(a_RI, self._scaling * (b_OR.detach().T @ gradient))
        add_gradient(b_OR, self._scaling * (gradient @ a_RI.detach().T))

    def constrained(self, constraint: Constraint) -> tuple[Constraint, Tensor]:
        """The projection of W0 + s B A."""
        update = self.tensors["lora_B"].detach() @ self.tensors["lora_A"].detach()
        return _projected(constraint, torch.add(self._start, update, alpha=self._scaling))


class Scales(Trainable):
    """The grid's scales; codes stay as they are.

    Raises:
        StructureError: the constraint has no grid, or one without a free scale.
    """

    def __init__(self, weight: Tensor, constraint: Constraint) -> None:
        grid = constraint.grid
        if grid is None or not grid.trainable_scale or constraint.parameters["scale"].ndim < 2:  # noqa: PLR2004
            kind = "a weight without a grid" if grid is None else grid.describe()
            raise StructureError(f"train: scales does not fit {kind}; use train: weights or lora")
        scale_OG = constraint.parameters["scale"]
        self.tensors = {"scale": nn.Parameter(scale_OG.detach().clone())}
        groups_OGS = grouped(constraint.view_OI(weight.detach()), grid.group_size)
        self._grid, self._transposed = grid, constraint.transposed
        self._units_OGS = (groups_OGS / scale_OG[..., None]).nan_to_num_(0.0)  # a block of zeros may have scale 0

    def pull(self, gradient: Tensor) -> None:
        """Sum over each group of dW · code."""
        gradient_OI = gradient.T if self._transposed else gradient
        add_gradient(self.tensors["scale"], (grouped(gradient_OI, self._grid.group_size) * self._units_OGS).sum(-1))

    def constrained(self, constraint: Constraint) -> tuple[Constraint, Tensor]:
        """The same codes times the scales as the format stores them."""
        parameters = self._grid.rescaled(constraint.parameters, self.tensors["scale"].detach())
        moved = replace(constraint, parameters=parameters)
        weight_OI = (self._units_OGS * parameters["scale"][..., None]).flatten(1)
        return moved, moved.project(constraint.view_OI(weight_OI))


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's gradient, in the parameter's type."""
    parameter.grad = gradient.to(parameter.dtype) if parameter.grad is None else parameter.grad.add_(gradient)


def _projected(constraint: Constraint, weight: Tensor) -> tuple[Constraint, Tensor]:
    fitted = constraint.fitted(weight) if constraint.refit else constraint
    return fitted, fitted.project(weight)
