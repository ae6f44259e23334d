"""The singular-value repair: what is of low rank stays to the last bit that matters, the rest goes back to the base."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.models.layers import block_linears
from recoup.progress import silent
from recoup.repair import applies, candidates
from recoup.repair.base import weights
from recoup.repair.svd_repair import OVERSAMPLING, leading
from tests.repair.conftest import pair


def test_leading_by_hand() -> None:
    # of diag(3, −2, 1) the two largest singular values are 3 and 2: diag(3, −2, 0), and Σ σ² = 9 and 9 + 4
    change = leading(torch.diag(torch.tensor([3.0, -2, 1])), rank=2)
    assert torch.allclose(change.product(2), torch.diag(torch.tensor([3.0, -2, 0])), atol=1e-6)
    assert torch.allclose(change.product(1), torch.diag(torch.tensor([3.0, 0, 0])), atol=1e-6)
    assert change.energy(1) == pytest.approx(9)
    assert change.energy(2) == pytest.approx(13)


@settings(deadline=None, max_examples=20)
@given(outputs=st.integers(1, 40), inputs=st.integers(1, 40), rank=st.integers(1, 6), seed=st.integers(0, 9))
def test_no_matrix_of_that_rank_is_much_nearer(outputs: int, inputs: int, rank: int, seed: int) -> None:
    delta = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    change = leading(delta, rank)
    tail = torch.linalg.svdvals(delta)[rank:].square().sum()  # the least possible (Eckart and Young)
    error = (delta - change.product(rank)).square().sum()
    assert error >= tail * (1 - 1e-9) - 1e-12
    exact = rank + OVERSAMPLING >= min(outputs, inputs)
    assert error <= tail * (1 + (1e-9 if exact else 0.05)) + 1e-12
    assert change.energy(rank) == pytest.approx(float(delta.square().sum() - error))


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_change_of_rank_one_stays_and_everything_else_goes_back(tiny_models: dict[str, Path], layout: str) -> None:
    damaged = pair(tiny_models[layout])
    generator = torch.Generator().manual_seed(0)
    changed = {f"{layer}.weight" for layer in block_linears(damaged.student.model)}
    for name, weight in weights(damaged.student).items():
        if name in changed:
            rows, columns = weight.shape
            weight += torch.randn(rows, 1, generator=generator) @ torch.randn(1, columns, generator=generator)
        else:
            weight += 1
    assert applies("svd_repair", damaged) is None
    found = list(candidates("svd_repair", damaged, silent))
    assert [c.settings for c in found] == [{"rank_share": 1 / 8}, {"rank_share": 1 / 32}]
    for candidate in found:
        for name, weight in weights(candidate.model).items():
            expected = weights(damaged.student if name in changed else damaged.teacher)[name]
            assert torch.allclose(weight, expected, atol=1e-5), name
        assert "100% by energy" in str(candidate.note)


def test_ranks_and_energy_by_hand(tiny_model: Path) -> None:
    # the change of every matrix is diagonal: 2, and 1 for the others. An eighth of the smaller side, 32 (key and value: 16),
    # is rank 4 (2); a 32nd is rank 1 (0.5, so 1). In each block five matrices have Σ σ² = 4 + 31 and two 4 + 15: 213 in all.
    # Kept are 5 (4 + 3) + 2 (4 + 1) = 45 of it, 21%, or 7 · 4 = 28, 13%
    damaged = pair(tiny_model)
    for layer in block_linears(damaged.student.model):
        diagonal = weights(damaged.student)[f"{layer}.weight"].diagonal()
        diagonal.add_(1)
        diagonal[0] += 1
    notes = [str(candidate.note) for candidate in candidates("svd_repair", damaged, silent)]
    assert "the 2 to 4 leading directions of each matrix's change (21% by energy)" in notes[0]
    assert "the 1 leading directions of each matrix's change (13% by energy)" in notes[1]
