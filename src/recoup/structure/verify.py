"""Check that a model keeps its structure bit for bit, and count what it weighs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recoup.structure.spec import Structure

UNCONSTRAINED_BITS = 16  # as users count: embeddings, head and norms in bf16


@dataclass(frozen=True)
class Verification:
    """What a model keeps, and where it fails to."""

    structure: Structure
    violations: tuple[str, ...]  # names of weights off their grid or mask
    counts: Mapping[str, tuple[int, int]]  # kind of weight ("q_proj") → (exact, all)
    num_parameters: int
    num_constrained: int
    sparsity: float  # share of zeros among constrained weights
    bits_per_weight: float  # over every parameter, embeddings and head included
    size_bytes: int | None = None  # of the weights on disk, where they are
    origin: str = ""  # where the structure is known from

    @property
    def exact(self) -> bool:
        """Whether every constrained weight is where it must be, bit for bit."""
        return not self.violations


@torch.no_grad()
def verify(model: nn.Module, structure: Structure) -> Verification:
    """Project every constrained weight with its stored scales and mask and compare bit for bit."""
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    violations = [name for name in structure.constraints if not _is_exact(name, parameters, structure)]
    constrained = [parameters[name] for name in structure.constraints if name in parameters]
    every, exact = Counter(map(_kind, structure.constraints)), Counter(map(_kind, structure.constraints))
    exact.subtract(map(_kind, violations))
    num_constrained = sum(weight.numel() for weight in constrained)
    return Verification(
        structure=structure,
        violations=tuple(violations),
        counts={kind: (exact[kind], every[kind]) for kind in every},
        num_parameters=sum(weight.numel() for weight in parameters.values()),
        num_constrained=num_constrained,
        sparsity=sum(int((weight == 0).sum()) for weight in constrained) / max(1, num_constrained),
        bits_per_weight=_bits_per_weight(parameters, structure),
    )


def _is_exact(name: str, parameters: Mapping[str, Tensor], structure: Structure) -> bool:
    weight = parameters.get(name)
    if weight is None:
        return False
    projected = structure.constraints[name].to(weight.device).project(weight)
    return torch.equal(projected.to(weight.dtype), weight)


def _kind(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` → `up_proj`."""
    return name.split(".")[-2]


def _bits_per_weight(parameters: Mapping[str, Tensor], structure: Structure) -> float:
    bits = 0.0
    for name, weight in parameters.items():
        constraint = structure.constraints.get(name)
        grid = constraint.grid if constraint else None
        bits += weight.numel() * (grid.bits_per_weight if grid else UNCONSTRAINED_BITS)
    return bits / max(1, sum(weight.numel() for weight in parameters.values()))
