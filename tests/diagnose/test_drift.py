"""Relative weight drift."""

import pytest
import torch
from torch import nn

from recoup.diagnose.drift import relative_drift, weight_matrices


def test_by_hand() -> None:
    """‖W_T‖ = √(3² + 4² + 12²) = 13; one weight moved by 2.6, so 2.6/13 = 0.2."""
    teacher = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[12.0], [0.0]])}
    student = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[12.0], [2.6]])}
    assert relative_drift(student, teacher) == pytest.approx(0.2)
    assert relative_drift(teacher, teacher) == 0


def test_other_shapes_or_names_have_no_drift() -> None:
    teacher = {"a": torch.ones(2, 3)}
    assert relative_drift({"a": torch.ones(2, 2)}, teacher) is None
    assert relative_drift({"b": torch.ones(2, 3)}, teacher) is None


def test_biases_and_norms_are_no_matrices() -> None:
    block = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    assert list(weight_matrices(block)) == ["0.weight"]
