"""NF4 by hand, its double quantization, and bit for bit against bitsandbytes where that is installed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.structure.grids.nf4 import (
    NF4_CODES,
    NF4Grid,
    dequantize_absmax,
    dynamic_map,
    nearest_codes,
    pack_nf4,
    quantize_absmax,
    unpack_nf4,
)


def random(rows: int, columns: int, seed: int, spread: float = 0.0) -> torch.Tensor:
    """Normal weights whose rows differ in size by factors of about e^spread."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * (torch.randn(rows, 1, generator=generator) * spread).exp()


def test_codes_by_hand() -> None:
    # absmax 2: 2/2 = 1 is code 15; −0.4/2 = −0.2 lies between −0.2844 and −0.1848, nearer the latter, code 5; 0 is code 7
    weight = torch.tensor([[2.0, -0.4, 0.0, 0.0]])
    grid = NF4Grid(group_size=4)
    parameters = grid.fit(weight)
    assert torch.equal(grid.codes(weight, parameters), torch.tensor([[15, 5, 7, 7]], dtype=torch.uint8))
    assert torch.equal(grid.project(weight, parameters), torch.tensor([[2.0, NF4_CODES[5] * 2, 0.0, 0.0]]))


def test_halfway_goes_to_the_lower_code() -> None:
    middle = (torch.tensor(NF4_CODES[8]) + torch.tensor(NF4_CODES[9])) / 2
    above = torch.nextafter(middle, torch.tensor(1.0))
    weight = torch.stack([torch.tensor(1.0), middle, above, -middle])[None]
    grid = NF4Grid(group_size=4)
    assert grid.codes(weight, grid.fit(weight)).tolist() == [[15, 8, 9, 6]]  # −0.12 is nearer −0.091 than −0.185


def test_codes_are_the_nearest_also_beside_every_middle_and_cell_edge() -> None:
    codes = torch.tensor(NF4_CODES)
    middles = (codes[1:] + codes[:-1]) / 2
    points = torch.cat([middles, codes, torch.arange(-16, 17) / 16, torch.linspace(-1.5, 1.5, 4001)])
    around = torch.cat([points, points.nextafter(torch.tensor(2.0)), points.nextafter(torch.tensor(-2.0))])
    assert torch.equal(nearest_codes(around), torch.bucketize(around, middles).to(torch.uint8))


def test_packing_by_hand() -> None:
    # 1 and 15 → 0x1f; 7 alone → 0x7 and the code of zero, 7
    codes = torch.tensor([1, 15, 7], dtype=torch.uint8)
    assert pack_nf4(codes).tolist() == [0x1F, 0x77]
    assert torch.equal(unpack_nf4(pack_nf4(codes), 3), codes)


@given(count=st.integers(1, 70), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_packing_round_trips(count: int, seed: int) -> None:
    codes = torch.randint(0, 16, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(unpack_nf4(pack_nf4(codes), count), codes)


def test_dynamic_map_by_hand() -> None:
    # decade 0 holds the centre of [0.1, 1] times 1e-6: 0.55e-6; decade 6 64 centres, the last 1 − 0.9/128
    values = dynamic_map()
    assert values.shape == (256,)
    assert torch.equal(values, values.sort().values)
    zero = int((values == 0).nonzero())
    assert values[zero + 1].item() == pytest.approx(0.55e-6)
    assert values[-2].item() == pytest.approx(1 - 0.9 / 128)
    assert values[-1].item() == 1
    assert values[0].item() == -values[-2].item()  # −1 itself is not among them


def test_double_quantization_by_hand() -> None:
    # absmax 1 and 3, mean 2: −1 and 1 over the scale 1; −1 is rounded to −0.99296875, the lowest value there is
    weight = torch.tensor([[1.0, 0.5, 3.0, -1.5]])
    grid = NF4Grid(group_size=2, double_quantized=True)
    parameters = grid.fit(weight)
    assert parameters["absmax_codes"].tolist() == [[0, 255]]
    assert parameters["absmax_scale"].tolist() == [1.0]
    assert parameters["absmax_offset"].item() == 2.0
    assert torch.allclose(parameters["scale"], torch.tensor([[1.00703125, 3.0]]), rtol=1e-6)
    # 0.5 of the first absmax: below (0.4407 + 0.5626)/2; −1.5/3 = −0.5: below (−0.5251 − 0.3949)/2
    codes = torch.tensor([[1.0, NF4_CODES[12], 1.0, NF4_CODES[2]]])
    assert torch.equal(grid.project(weight, parameters), codes * parameters["scale"].repeat_interleave(2, 1))


def test_codes_are_picked_before_absmax_is_rounded_and_yet_stay() -> None:
    # one block 1000 times the others: their absmax comes back off by so much that many codes change with it
    weight = random(16, 64, seed=0)
    weight[3] *= 1000
    grid = NF4Grid(16, double_quantized=True)
    parameters = grid.fit(weight)
    by_scale_alone = grid.project(weight, {"scale": parameters["scale"]})
    once = grid.project(weight, parameters)
    assert not torch.equal(once, by_scale_alone)
    assert torch.equal(grid.codes(weight, parameters), NF4Grid(16).codes(weight, {"scale": parameters["absmax"]}))
    with_absmax_alone = grid.project(once, {"scale": parameters["absmax"]})
    assert not torch.equal(with_absmax_alone, once)  # so keeping what is on the grid matters
    assert torch.equal(grid.project(once, parameters), once)
    assert torch.equal(grid.project(once, {"scale": parameters["scale"]}), once)  # as a checkpoint is read


@pytest.mark.parametrize("double_quantized", [False, True])
def test_zeros_stay_zeros_and_scales_can_be_divided_by(double_quantized: bool) -> None:
    weight = torch.zeros(2, 128)
    grid = NF4Grid(64, double_quantized)
    parameters = grid.fit(weight)
    assert torch.equal(grid.project(weight, parameters), weight)
    assert (parameters["scale"] != 0).all()


@given(rows=st.integers(1, 40), seed=st.integers(0, 99), spread=st.sampled_from([0.0, 1.0, 4.0]))
@settings(deadline=None, max_examples=40)
def test_absmax_survives_within_a_part_of_its_block(rows: int, seed: int, spread: float) -> None:
    # values of the map are at most 0.9/64 apart (and 0.0071 from −1), and the table steps by 2/65535, half of it either way
    absmax = random(rows, 33, seed, spread).abs()
    codes, scale, offset = quantize_absmax(absmax)
    error = (dequantize_absmax(codes, scale, offset, dynamic_map()) - absmax).abs().flatten()
    assert (error <= scale.repeat_interleave(256)[: error.numel()] * (0.9 / 128 + 1 / 65535 + 1e-6) + 1e-6).all()


def test_trained_scales_are_ones_that_can_be_stored() -> None:
    grid = NF4Grid(64, double_quantized=True)
    weight = random(8, 128, seed=1)
    moved = grid.rescaled(grid.fit(weight), torch.rand(8, 2) + 0.5)
    stored = dequantize_absmax(moved["absmax_codes"], moved["absmax_scale"], moved["absmax_offset"], dynamic_map())
    assert torch.equal(moved["scale"], stored)
    assert "absmax" not in moved  # codes are those of the weight, no longer picked by what was fitted
    assert torch.equal(NF4Grid().rescaled({}, torch.tensor([[2.0]]))["scale"], torch.tensor([[2.0]]))


def test_bits_per_weight_and_words() -> None:
    assert NF4Grid(64).bits_per_weight == 4 + 32 / 64
    assert NF4Grid(64, True).bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256)
    assert NF4Grid(64, True).describe() == "NF4, blocks of 64, double-quantized"


@pytest.mark.parametrize("shape", [(40, 576), (64, 1024), (7, 64), (5, 18)])  # rows of (5, 18) end within blocks
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("double_quantized", [False, True])
def test_agrees_with_bitsandbytes(
    shape: tuple[int, int], spread: float, zeros: bool, dtype: torch.dtype, double_quantized: bool
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = random(*shape, seed=3, spread=spread).to(dtype)
    weight[1] *= 0 if zeros else 1
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=double_quantized
    )
    grid = NF4Grid(64, double_quantized)
    parameters = grid.fit(weight)
    values = grid.project(weight, parameters)

    assert torch.equal(pack_nf4(grid.codes(weight, parameters)), packed.flatten())
    assert torch.equal(values.to(dtype), functional.dequantize_4bit(packed, state).reshape(shape))
    if double_quantized:
        assert torch.equal(parameters["absmax_codes"].flatten(), state.absmax)
        assert torch.equal(parameters["absmax_scale"], state.state2.absmax)
        assert torch.equal(parameters["absmax_offset"], state.offset)
        assert torch.equal(dynamic_map(), state.state2.code)
        nested = (state.absmax, state.state2.absmax, state.offset, state.state2.code)
        theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        assert torch.equal(dequantize_absmax(*nested), theirs)
        assert torch.equal(parameters["scale"].flatten(), theirs)
    else:
        nonzero = state.absmax > 1e-30  # blocks of zeros: 0 there, 1 here
        assert torch.equal(parameters["scale"].flatten()[nonzero], state.absmax[nonzero])
        assert (parameters["scale"].flatten()[~nonzero] == 1).all()
