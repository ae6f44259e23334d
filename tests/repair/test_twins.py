"""Twins: blocks are found again where some were removed, whatever else was done to them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.config import Depth
from recoup.degrade import Context
from recoup.degrade.depth import apply
from recoup.models.load import load
from recoup.progress import silent
from recoup.repair.twins import matched, twins
from tests.conftest import save_tiny


def test_matched_by_hand() -> None:
    # each nearest to its own: 0 → 0, 1 → 2
    assert matched([[0.0, 5.0, 9.0], [9.0, 5.0, 0.0]]) == [0, 2]
    # both are nearest to 1, but only one can have it, and order holds: 1 + 4 (0, 1) against 1 + 5 (1, 2): the first
    assert matched([[4.0, 1.0, 9.0], [9.0, 1.0, 5.0]]) == [0, 1]
    # order holds even where crossing would cost nothing: (0, 1) costs 7 + 7, (0, 2) 7 + 9, (1, 2) 0 + 9
    assert matched([[7.0, 0.0, 7.0], [0.0, 7.0, 9.0]]) == [1, 2]


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 7), min_size=1), st.integers(0, 5))
def test_own_blocks_are_found(kept: set[int], seed: int) -> None:
    points = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    order = sorted(kept)
    assert matched(torch.cdist(points[order], points).tolist()) == order


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_shallower_student(tmp_path: Path, layout: str, text_file: Path) -> None:
    deeper = {"n_layer": 4} if layout == "gpt2" else {"num_hidden_layers": 4}
    folder = save_tiny(layout, tmp_path, **deeper)
    teacher, student = load(str(folder)), load(str(folder))
    notes: list[str] = []
    config = Depth(num_blocks=2, calibration=str(text_file), calibration_tokens=200)
    apply(student, student.structure, config, Context(0, silent, notes.append))
    removed = {int(word.strip(",")) for word in notes[0].split(" of ")[0].split()[1:]}
    kept = [index for index in range(4) if index not in removed]
    for parameter in student.model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    found = twins(student.model, teacher.model)
    prefix = "transformer.h" if layout == "gpt2" else "model.layers"
    assert [found[f"{prefix}.{index}"] for index in range(2)] == [f"{prefix}.{index}" for index in kept]
    assert all(own.split(".")[3:] == theirs.split(".")[3:] for own, theirs in found.items())
    assert len(set(found.values())) == len(found)
