"""MXFP4 and NVFP4 by hand, MXFP4 against ggml's blocks, both against compressed-tensors where that is installed."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.structure.grids.fp4 import round_e2m1
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def row(values: list[float], width: int) -> torch.Tensor:
    return torch.tensor([values + [0.0] * (width - len(values))])


def random(rows: int, columns: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns // 16, 16, generator=generator)
    return (weight * (torch.randn(rows, columns // 16, 1, generator=generator) * spread).exp()).view(rows, columns)


def test_rounding_by_hand() -> None:
    values = torch.tensor([0.2, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 100.0, torch.inf, -0.75, -5.0])
    even = [0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 6.0, -1.0, -4.0]
    zero = [0.0, 0.0, 0.5, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 6.0, 6.0, -0.5, -4.0]
    assert round_e2m1(values, "to_even").tolist() == even
    assert round_e2m1(values, "to_zero").tolist() == zero


@given(st.floats(-8, 8, width=32))
@settings(deadline=None)
def test_rounding_is_to_the_nearest(value: float) -> None:
    nearest = min(abs(abs(value) - code) for code in E2M1)
    for halfway in ("to_even", "to_zero"):
        rounded = round_e2m1(torch.tensor([value]), halfway).item()
        assert abs(rounded - value) == nearest
        assert rounded * value >= 0


def test_mxfp4_by_hand() -> None:
    # floor(log2 7) − 2 = 0: scale 1; 7 is clipped to 6, 2.5 and 3.5 and 0.75 lie halfway and go to the smaller code
    weight = row([7.0, 2.5, -3.5, 0.75, 0.26], 32)
    grid = MXFP4Grid()
    parameters = grid.fit(weight)
    assert parameters["scale"].tolist() == [[1.0]]
    assert torch.equal(grid.project(weight, parameters), row([6.0, 2.0, -3.0, 0.5, 0.5], 32))
    # 4 · 2^-3 sets 2^-3; 0.1/2^-3 = 0.8 → 1
    small = row([0.5, 0.1], 32)
    assert grid.fit(small)["scale"].item() == 2.0**-3
    assert torch.equal(grid.project(small, grid.fit(small)), row([0.5, 0.125], 32))


def test_mxfp4_at_the_ends_of_its_exponents() -> None:
    grid = MXFP4Grid()
    zeros, tiny, huge = torch.zeros(1, 32), row([2.0**-140], 32), row([2.0**127], 32)
    assert [grid.fit(weight)["scale"].item() for weight in (zeros, tiny, huge)] == [2.0**-127, 2.0**-127, 2.0**125]
    assert torch.equal(grid.project(tiny, grid.fit(tiny)), zeros)  # 2^-13 of a step
    assert torch.equal(grid.project(huge, grid.fit(huge)), huge)


def gguf_round_trip(weight: torch.Tensor) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType.MXFP4
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind).copy())


@given(seed=st.integers(0, 999), spread=st.sampled_from([0.0, 1.0, 8.0]))
@settings(deadline=None, max_examples=60)
def test_mxfp4_agrees_with_ggml(seed: int, spread: float) -> None:
    weight = random(8, 128, seed, spread)
    weight[0, :32] = 0
    weight[1] = (weight[1] * 4).round() / 4  # many values halfway between codes
    grid = MXFP4Grid()
    assert torch.equal(grid.project(weight, grid.fit(weight)), gguf_round_trip(weight))


def test_mxfp4_agrees_with_ggml_just_below_powers_of_two() -> None:
    weight = torch.zeros(200, 32)
    below = np.float32(4.0)
    for index in range(len(weight)):
        weight[index, 0] = float(below)
        below = np.nextafter(below, np.float32(0))
    grid = MXFP4Grid()
    scales = grid.fit(weight)["scale"]
    # log2 (4 − d) = 2 − d/(4 ln 2): rounds to 2 up to half the step of float32 below 2, 2^-24: d = 1.65e-7 is no step of 2^-22
    assert scales[0] == 1
    assert scales[-1] == 0.5
    assert torch.equal(grid.project(weight, {"scale": scales}), gguf_round_trip(weight))


def test_nvfp4_by_hand() -> None:
    # absmax 6 of the tensor: global 448 · 6 / 6 = 448. First group: 448 · 6/6 = 448, a step of 1; second: 3/6 · 448 = 224, 1/2
    weight = torch.cat([row([6.0, 0.75, -2.5, 1.3], 16), row([3.0, 0.375, -0.1], 16)], dim=1)
    grid = NVFP4Grid()
    parameters = grid.fit(weight)
    assert parameters["global"].item() == 448
    assert parameters["scale"].tolist() == [[448.0, 224.0]]
    # 0.75 lies halfway between 0.5 and 1: the even code is 1's, also at a step of 1/2; −0.1/0.5 = −0.2 → 0
    expected = torch.cat([row([6.0, 1.0, -2.0, 1.5], 16), row([3.0, 0.5], 16)], dim=1)
    assert torch.equal(grid.project(weight, parameters), expected)


def test_nvfp4_scales_are_e4m3_and_zeros_get_an_eighth() -> None:
    weight = random(6, 64, seed=2)
    weight[0, :16] = 0
    parameters = NVFP4Grid().fit(weight)
    scale = parameters["scale"]
    assert torch.equal(scale, scale.to(torch.float8_e4m3fn).float())
    assert scale[0, 0] == 0.125
    assert scale.max() == 448
    zeros = NVFP4Grid().fit(torch.zeros(1, 32))
    assert (zeros["global"].item(), zeros["scale"].tolist()) == (1.0, [[0.125, 0.125]])


@pytest.mark.parametrize(("grid", "size"), [(MXFP4Grid, 32), (NVFP4Grid, 16)])
def test_group_sizes_are_the_formats_own(grid: type[MXFP4Grid] | type[NVFP4Grid], size: int) -> None:
    with pytest.raises(
        StructureError, match=f"groups of {size} inputs, which do not divide 24; use nf4 or int instead"
    ):
        grid().fit(torch.zeros(2, 24))
    assert not grid.trainable_scale  # scales lie on coarse grids of their own


def test_bits_per_weight_and_words() -> None:
    assert (MXFP4Grid().bits_per_weight, NVFP4Grid().bits_per_weight) == (4.25, 4.5)
    assert (MXFP4Grid().describe(), NVFP4Grid().describe()) == ("MXFP4, groups of 32", "NVFP4, groups of 16")


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0, 12.0])
def test_nvfp4_agrees_with_compressed_tensors(spread: float) -> None:
    presets = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    settings_ = presets.preset_name_to_scheme("NVFP4", ["Linear"]).weights
    weight = random(64, 192, seed=4, spread=spread)
    weight[3, :16] = 0
    weight[4] = (weight[4] * 4).round() / 4
    grid = NVFP4Grid()
    parameters = grid.fit(weight)

    theirs_global = helpers.generate_gparam(weight.amin(), weight.amax())
    groups = weight.view(64, -1, 16)
    theirs, _ = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), settings_, theirs_global)
    assert torch.equal(parameters["global"], theirs_global[0])
    assert torch.equal(parameters["scale"], theirs)
    rounded = forward.fake_quantize(weight, theirs, None, settings_, theirs_global)
    assert torch.equal(grid.project(weight, parameters), rounded)


def test_mxfp4_against_compressed_tensors_differs_where_said() -> None:
    presets = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    settings_ = presets.preset_name_to_scheme("MXFP4", ["Linear"]).weights
    weight = random(64, 256, seed=5)
    groups = weight.view(64, -1, 32)
    theirs, _ = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), settings_)
    grid = MXFP4Grid()
    ours = grid.fit(weight)["scale"]
    mantissa = torch.frexp(groups.abs().amax(-1)).mantissa * 2  # in [1, 2)
    doubled = mantissa >= 1.75
    assert doubled.any()
    assert not doubled.all()
    assert torch.equal(theirs, torch.where(doubled, ours * 2, ours))
    # random values are nowhere halfway between codes: with the same scales, the same weights
    assert torch.equal(grid.project(weight, {"scale": theirs}), forward.fake_quantize(weight, theirs, None, settings_))
