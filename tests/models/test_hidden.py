"""Hidden states times the head's formula are the model's logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.models.hidden import completion_hidden, head_of
from recoup.models.load import load
from recoup.models.logits import completion_logits
from recoup.models.sample import pack
from tests.conftest import LAYOUTS, save_tiny

ROLLOUTS = pack([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad=0)


def largest_gap(folder: Path) -> float:
    model = load(str(folder)).model
    ours = head_of(model).logits(completion_hidden(model, ROLLOUTS))
    return float((ours - completion_logits(model, ROLLOUTS)).abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_head_of_every_layout(tiny_models: dict[str, Path], layout: str) -> None:
    assert largest_gap(tiny_models[layout]) < 1e-5


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("gemma3_text", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_what_stands_around_a_head(layout: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny(layout, tmp_path, **changes)
    assert largest_gap(folder) < 1e-5
    head = head_of(load(str(folder)).model)
    # Cohere multiplies by logit_scale 0.25; Granite divides by logits_scaling 4
    assert (head.softcap, head.scale) == (
        (2.0, 1.0) if layout == "gemma3_text" else (None, pytest.approx(0.25, rel=1e-4))
    )


def test_gradients_reach_the_backbone(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["llama"])).model.requires_grad_(True)
    completion_hidden(model, ROLLOUTS).square().sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in model.parameters())
