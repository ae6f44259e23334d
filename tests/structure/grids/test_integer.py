"""Integer grids by hand: groups and channels, symmetric, asymmetric and with the full range of codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.structure.grids.integer import IntegerGrid


def test_per_channel_by_hand() -> None:
    # int3 codes −3…3; row scales 0.75/3 = 0.25 and 3/3 = 1: 0.3/0.25 = 1.2 → 1, −0.4/0.25 = −1.6 → −2; 1.4 → 1, −0.6 → −1
    weight = torch.tensor([[0.75, 0.3, -0.4], [3.0, 1.4, -0.6]])
    grid = IntegerGrid(bits=3, group_size=None, symmetric=True)
    parameters = grid.fit(weight)
    assert parameters["scale"].tolist() == [[0.25], [1.0]]
    assert torch.equal(grid.project(weight, parameters), torch.tensor([[0.75, 0.25, -0.5], [3.0, 1.0, -1.0]]))


def test_asymmetric_per_channel_by_hand() -> None:
    # int2 codes 0…3. Row 1 over [−0.5, 1]: scale 0.5, zero 1; 0.6/0.5 = 1.2 → 1, and 1 + 1 = 2, value 0.5.
    # Row 2 lies above zero, and the range still includes it: [0, 3], scale 1, zero 0; 1.4 → 1
    # Row 3 lies below: [−6, 0], scale 2, zero 3; −3.2/2 = −1.6 → −2, value −4
    weight = torch.tensor([[-0.5, 1.0, 0.6], [3.0, 1.4, 2.0], [-6.0, -3.2, -2.0]])
    grid = IntegerGrid(bits=2, group_size=None, symmetric=False)
    parameters = grid.fit(weight)
    assert parameters["scale"].tolist() == [[0.5], [1.0], [2.0]]
    assert parameters["zero"].tolist() == [[1.0], [0.0], [3.0]]
    expected = torch.tensor([[-0.5, 1.0, 0.5], [3.0, 1.0, 2.0], [-6.0, -4.0, -2.0]])
    assert torch.equal(grid.project(weight, parameters), expected)


def test_full_range_adds_the_lowest_code() -> None:
    # int3, scale 0.5: −2.1/0.5 = −4.2 → −4 with the full range, else clamped to −3; above, 3 is the last either way
    weight, parameters = torch.tensor([[-2.1, 2.1]]), {"scale": torch.tensor([[0.5]])}
    narrow, full = IntegerGrid(3, 2, symmetric=True), IntegerGrid(3, 2, symmetric=True, full_range=True)
    assert torch.equal(narrow.project(weight, parameters), torch.tensor([[-1.5, 1.5]]))
    assert torch.equal(full.project(weight, parameters), torch.tensor([[-2.0, 1.5]]))


@given(seed=st.integers(0, 99), group_size=st.sampled_from([None, 8]), bits=st.integers(2, 8))
@settings(deadline=None, max_examples=30)
def test_fitted_here_no_weight_needs_the_full_range(seed: int, group_size: int | None, bits: int) -> None:
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    grids = [IntegerGrid(bits, group_size, symmetric=True, full_range=full) for full in (False, True)]
    narrow, full = (grid.project(weight, grid.fit(weight)) for grid in grids)
    assert torch.equal(narrow, full)


@given(seed=st.integers(0, 99), symmetric=st.booleans(), bits=st.integers(2, 8))
@settings(deadline=None, max_examples=30)
def test_per_channel_is_one_group_of_all_inputs(seed: int, symmetric: bool, bits: int) -> None:
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(seed))
    channel, group = (IntegerGrid(bits, size, symmetric) for size in (None, 24))
    parameters = channel.fit(weight)
    assert parameters.keys() == group.fit(weight).keys()
    assert all(torch.equal(value, group.fit(weight)[key]) for key, value in parameters.items())
    assert torch.equal(channel.project(weight, parameters), group.project(weight, parameters))


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_value_of_eight_bits_is_exact_in_float32(symmetric: bool) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    grid = IntegerGrid(8, None, symmetric, full_range=symmetric)
    parameters = grid.fit(weight)
    lowest = torch.full((16, 1), -128.0) if symmetric else -parameters["zero"]
    exact = (lowest.double() + torch.arange(256)) * parameters["scale"].double()
    assert torch.equal(exact.float().double(), exact)
    assert torch.equal(grid.project(exact.float(), parameters), exact.float())  # all 256 are kept


def test_trained_scales_are_float16_and_zero_points_stay() -> None:
    grid = IntegerGrid(4, None, symmetric=False)
    before = grid.fit(torch.tensor([[-1.0, 2.0]]))
    after = grid.rescaled(before, torch.tensor([[1 + 2.0**-12]]))
    assert after["scale"].tolist() == [[1.0]]  # float16 steps by 2^-10 above 1
    assert torch.equal(after["zero"], before["zero"])


def test_bits_per_weight_and_words() -> None:
    assert IntegerGrid(4, 64, symmetric=True).bits_per_weight == 4 + 16 / 64
    assert IntegerGrid(4, 64, symmetric=False).bits_per_weight == 4 + (16 + 4) / 64
    assert IntegerGrid(8, None, symmetric=True).bits_per_weight == 8
    assert IntegerGrid(8, None, symmetric=True).describe() == "int8, per channel, symmetric"
    assert IntegerGrid(3, 64, symmetric=False).describe() == "int3, groups of 64, asymmetric"
