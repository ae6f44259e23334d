"""Q4_0 to Q8_0: by hand, then against gguf's own quantizer."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recoup.errors import StructureError
from recoup.structure.grids.gguf_legacy import BlockGrid, Q40Grid, Q41Grid, Q50Grid, Q51Grid, Q80Grid

GRIDS = [Q40Grid(), Q41Grid(), Q50Grid(), Q51Grid(), Q80Grid()]
EVERY = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.format)
SCALED = pytest.mark.parametrize("grid", [Q40Grid(), Q50Grid(), Q80Grid()], ids=lambda grid: grid.format)


def block(*values: float) -> Tensor:
    """A block of 32 weights that starts with these; the rest is zero."""
    return torch.tensor([[*values, *([0.0] * (32 - len(values)))]])


def projected(grid: BlockGrid, weight: Tensor) -> Tensor:
    return grid.project(weight, grid.fit(weight))


def test_q4_0_by_hand() -> None:
    # the largest magnitude, −2, gets code −8: scale −2/−8 = 0.25. 0.3/0.25 = 1.2 → 1; 0.375/0.25 = 1.5, half rounds up → 2;
    # −1.5 → −1; 1.99/0.25 = 7.96 would be 8, and 7 is the last code
    weight = block(-2.0, 0.3, 0.375, -0.375, 1.99)
    assert torch.equal(projected(Q40Grid(), weight), block(-2.0, 0.25, 0.5, -0.25, 1.75))


def test_q5_0_by_hand() -> None:
    # the largest magnitude, 4, gets code −16: scale −0.25. −1.1/−0.25 = 4.4 → 4; −3.9/−0.25 = 15.6, and 15 is the last code
    assert torch.equal(projected(Q50Grid(), block(4.0, -1.1, -3.9)), block(4.0, -1.0, -3.75))


def test_q8_0_by_hand() -> None:
    # scale 63.5/127 = 0.5; halves round away from zero: 0.25 → 1 code, −0.25 → −1, 0.2 → 0, 0.75/0.5 = 1.5 → 2
    assert torch.equal(projected(Q80Grid(), block(-63.5, 0.25, -0.25, 0.2, 0.75)), block(-63.5, 0.5, -0.5, 0.0, 1.0))


def test_q4_1_by_hand() -> None:
    # from −0.5 to 3.25: scale 3.75/15 = 0.25. 0.1: 0.6/0.25 = 2.4 → 2 → −0.5 + 0.5 = 0; 0.125: 2.5, half rounds up → 0.25
    weight = block(-0.5, 3.25, 0.1, 0.125)
    assert torch.equal(projected(Q41Grid(), weight), block(-0.5, 3.25, 0.0, 0.25))


def test_q5_1_by_hand() -> None:
    # from 1 to 8.75: scale 7.75/31 = 0.25; 2.3: 1.3/0.25 = 5.2 → 5 → 2.25. The block has no zeros
    weight = torch.full((1, 32), 1.0)
    weight[0, :2] = torch.tensor([8.75, 2.3])
    expected = weight.clone()
    expected[0, 1] = 2.25
    assert torch.equal(projected(Q51Grid(), weight), expected)


def test_codes_are_picked_with_the_scale_before_float16() -> None:
    # scale 1.0004 is stored as 1 (float16 steps by 2^-10 = 0.00098). 7.502/1.0004 = 7.499 → 7, though 7.502/1 would be 8 → 7
    # and −3.5012/1.0004 = −3.49980 → −3, where −3.5012/1 → −4 codes
    weight = block(-8.0032, -3.5012)
    grid = Q40Grid()
    parameters = grid.fit(weight)
    assert parameters["scale"].item() == 1.0
    assert torch.equal(grid.project(weight, parameters), block(-8.0, -3.0))


def test_a_block_too_small_for_float16_still_keeps_what_is_on_the_grid() -> None:
    # in units of 2^-24, float16's smallest step: scale 12.8/8 = 1.6, stored as 2. 5.1/1.6 = 3.19 → 3 codes, stored as 6;
    # picked again with 1.6 that would be 3.75 → 4
    unit = 2.0**-24
    grid, weight = Q40Grid(), block(-12.8 * unit, 5.1 * unit)
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert torch.equal(once, block(-16 * unit, 6 * unit))
    assert torch.equal(grid.project(once, parameters), once)


@EVERY
def test_constant_and_zero_blocks(grid: BlockGrid) -> None:
    assert torch.equal(projected(grid, torch.zeros(2, 64)), torch.zeros(2, 64))
    half = torch.full((1, 32), 0.5)  # a power of two: a scale or minimum that float16 holds
    assert torch.allclose(projected(grid, half), half, rtol=2**-11)


@EVERY
@given(seed=st.integers(0, 9999), log_size=st.floats(-9, 4), offset=st.sampled_from([0.0, 0.0, 1.0, -3.0]))
@example(seed=0, log_size=-4.0, offset=0.0)  # Q8_0's scales are subnormal: about 2e-6
@settings(deadline=None, max_examples=30)
def test_agrees_with_gguf_bit_for_bit(grid: BlockGrid, seed: int, log_size: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(4, 96, generator=generator) + offset) * 10**log_size
    weight[0, :32] = weight[0, 0]
    kind = Type[grid.format.upper()]
    reference = dequantize(quantize(weight.numpy(), kind), kind)
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert np.array_equal(once.numpy(), reference)
    assert torch.equal(grid.project(once, parameters), once)


@EVERY
@given(seed=st.integers(0, 9999), size=st.sampled_from([0.01, 1.0, 100.0]))
@settings(deadline=None, max_examples=10)
def test_fitting_the_projection_finds_the_same_scale(grid: BlockGrid, seed: int, size: float) -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) * size
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert torch.equal(grid.fit(once)["scale"], parameters["scale"])
    assert torch.equal(projected(grid, once), once)


@SCALED
def test_rescaled_keeps_codes_and_signs(grid: BlockGrid) -> None:
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    moved = grid.rescaled(parameters, parameters["scale"] * 2)
    assert torch.equal(moved["scale"], parameters["scale"] * 2)  # as exact in float16 as they were
    assert torch.equal(grid.project(once * 2, moved), once * 2)
    crossed = grid.rescaled(parameters, -parameters["scale"])["scale"]
    assert torch.equal(crossed, parameters["scale"].sign() * 2.0**-14)  # float16's smallest normal number


def test_which_scales_train() -> None:
    assert [grid.trainable_scale for grid in GRIDS] == [True, False, True, False, True]


@EVERY
def test_inputs_must_fill_blocks(grid: BlockGrid) -> None:
    with pytest.raises(StructureError, match=r"blocks of 32, not 48; .*float16"):
        grid.fit(torch.zeros(2, 48))


def test_bits_per_weight() -> None:
    # 32 codes and one or two float16: (32·4 + 16)/32 = 4.5, (32·4 + 32)/32 = 5, and so on
    assert [grid.bits_per_weight for grid in GRIDS] == [4.5, 5.0, 5.5, 6.0, 8.5]
