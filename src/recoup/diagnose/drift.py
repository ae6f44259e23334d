"""How far a block's weights moved: ‖W_S − W_T‖_F / ‖W_T‖_F over all of its weight matrices together."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def relative_drift(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> float | None:
    """Relative distance of the student's tensors from the teacher's, 0 where equal; None where names or shapes differ.

    Args:
        student: weights by name, of any float type.
        teacher: the same weights before the damage; not all zero.
    """
    if {name: w.shape for name, w in student.items()} != {name: w.shape for name, w in teacher.items()}:
        return None
    moved = sum(_square_norm(student[name].float() - teacher[name].float()) for name in teacher)
    return float((moved / sum(map(_square_norm, teacher.values()))) ** 0.5)


def weight_matrices(block: nn.Module) -> dict[str, Tensor]:
    """A block's weight matrices by name; biases and norms are not among them."""
    return {name: weight for name, weight in block.named_parameters() if weight.dim() > 1}


def _square_norm(weight: Tensor) -> float:
    return float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
