"""Ceiling and floor of CKA."""

from pathlib import Path

import pytest
import torch

from recoup.diagnose.bounds import cka_bounds, in_other_precision, reinitialised
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from tests.conftest import LAYOUTS


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (6, 20), generator=generator).tolist()
    return pack([row[:4] for row in tokens], [row[4:] for row in tokens], pad=258)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ceiling_is_near_one_and_the_floor_below(tiny_models: dict[str, Path], layout: str) -> None:
    """bfloat16 has 8 bits: relative errors near 0.4% a number, squares of them in CKA."""
    bounds = cka_bounds(load(str(tiny_models[layout])), rollouts(), seed=0)
    assert bounds.num_tokens == 6 * 19  # first tokens left out
    assert len(bounds.ceiling) == len(bounds.floor) == 2
    for ceiling, floor in zip(bounds.ceiling, bounds.floor, strict=True):
        assert 0.99 < ceiling < 1
        assert floor < 0.9


def test_fewer_tokens_are_whole_rollouts(tiny_model: Path) -> None:
    assert cka_bounds(load(str(tiny_model)), rollouts(), seed=0, max_tokens=50).num_tokens == 2 * 19


def test_the_seed_decides_and_nothing_outside_moves(tiny_model: Path) -> None:
    teacher = load(str(tiny_model))
    before = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (cka_bounds(teacher, rollouts(), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.ceiling == other.ceiling
    assert first.floor != other.floor
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.model.state_dict().items())


def test_a_reinitialised_model_shares_shapes_and_no_matrix(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype=torch.bfloat16).model
    fresh = reinitialised(model, seed=0)
    assert fresh.dtype == torch.bfloat16
    assert not fresh.training
    for (name, weight), (new_name, new) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        assert (name, weight.shape) == (new_name, new.shape)
        assert weight.dim() < 2 or not torch.equal(weight, new)


@pytest.mark.parametrize(("dtype", "other"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_the_other_precision(tiny_model: Path, dtype: torch.dtype, other: torch.dtype) -> None:
    model = load(str(tiny_model), dtype=dtype).model
    copied = in_other_precision(model)
    for mine, theirs in zip(model.parameters(), copied.parameters(), strict=True):
        assert (mine.dtype, theirs.dtype) == (dtype, other)
        assert torch.equal(mine.to(torch.bfloat16), theirs.to(torch.bfloat16))
    for mine, theirs in zip(model.buffers(), copied.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == theirs.dtype
