"""A text to calibrate on, rows to fine-tune on, and a silent context."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recoup.degrade import Context
from recoup.structure.spec import Constraint

ROWS = [
    {"prompt": f"Say {word}, please.", "completion": f"{word}, {word}!"} for word in ("red", "green", "blue", "black")
]


def mask_of(constraint: Constraint) -> Tensor:
    assert constraint.mask_OI is not None
    return constraint.mask_OI


def correlated(inputs: int, seed: int = 0) -> Tensor:
    """Σ x xᵀ of inputs that share three directions, some much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(400, 3, generator=generator) @ torch.randn(3, inputs, generator=generator)
    x = (shared + 0.3 * torch.randn(400, inputs, generator=generator)) * torch.logspace(-1, 1, inputs)
    return x.T @ x


def error(difference: Tensor, hessian: Tensor) -> float:
    return float(((difference @ hessian) * difference).sum())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    return file


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return file


@pytest.fixture
def context() -> Context:
    return Context(0, lambda label, done, total: None, lambda line: None)
