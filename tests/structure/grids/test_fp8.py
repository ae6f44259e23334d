"""FP8 (E4M3) by hand and element by element against compressed-tensors where that is installed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.structure.grids.fp8 import FP8Grid


def test_codes_by_hand() -> None:
    # absmax 448 sets scale 1. In [16, 32) codes step by 2: 17 is halfway, 16 has the even mantissa (1.000); 19 is halfway
    # between 1.001 and 1.010 (binary) times 16: 20. Below 2^-6 codes step by 2^-9: 0.001 is nearer 2^-9 than 0; 0.0009 is not
    weight = torch.tensor([[448.0, 17.0, -19.0, 0.001, 0.0009, 300.0]])
    expected = torch.tensor([[448.0, 16.0, -20.0, 2.0**-9, 0.0, 288.0]])  # [256, 512) steps by 32: 300 is nearer 288
    grid = FP8Grid()
    parameters = grid.fit(weight)
    assert parameters["scale"].tolist() == [[1.0]]
    assert torch.equal(grid.project(weight, parameters), expected)


@pytest.mark.parametrize(
    ("grid", "scales"),
    [
        (FP8Grid(), [[1.0], [4.0]]),  # per channel: 448/448, 1792/448
        (FP8Grid(group_size=2), [[1.0, 0.5], [2.0, 4.0]]),
        (FP8Grid(per_tensor=True), 4.0),
    ],
)
def test_where_scales_lie(grid: FP8Grid, scales: object) -> None:
    weight = torch.tensor([[448.0, 1.0, -224.0, 3.0], [896.0, 0.0, 5.0, -1792.0]])
    assert grid.fit(weight)["scale"].tolist() == scales
    assert torch.equal(grid.project(weight, grid.fit(weight))[1, 3], torch.tensor(-1792.0))


def test_scales_are_bfloat16_and_products_exact() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    grid = FP8Grid()
    scale = grid.fit(weight)["scale"]
    assert torch.equal(scale, scale.bfloat16().float())
    assert ((scale * 448 - weight.abs().amax(1, keepdim=True)).abs() <= weight.abs().amax(1, keepdim=True) / 2**8).all()
    # every code times every scale, in float64, is what float32 gives
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)  # 0x7f is NaN
    assert torch.equal((codes.double() * scale.double()).float().double(), codes.double() * scale.double())


@given(seed=st.integers(0, 99), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]), per_tensor=st.booleans())
@settings(deadline=None, max_examples=40)
def test_fitting_again_changes_nothing(seed: int, size: float, per_tensor: bool) -> None:
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(seed)) * size
    grid = FP8Grid(per_tensor=per_tensor)
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert torch.equal(grid.fit(once)["scale"], parameters["scale"])
    assert torch.equal(grid.project(once, grid.fit(once)), once)


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_unrounded_scales_of_a_checkpoint_are_kept_exactly_too(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters = {"scale": torch.rand(4, 1, generator=generator) + 1e-3}
    once = FP8Grid().project(torch.randn(4, 64, generator=generator) * 50, parameters)
    assert torch.equal(FP8Grid().project(once, parameters), once)


def test_trained_scales_are_rounded_and_positive() -> None:
    scale = FP8Grid().rescaled({}, torch.tensor([[1.001], [-3.0]]))["scale"]
    assert scale.tolist() == [[1.0], [2.0**-126]]  # bfloat16 steps by 2^-7 above 1; its smallest normal number


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(StructureError, match="per_tensor leaves no groups of 32; set group_size to null"):
        FP8Grid(32, per_tensor=True)


def test_bits_per_weight_and_words() -> None:
    assert (FP8Grid().bits_per_weight, FP8Grid(128).bits_per_weight) == (8, 8.125)
    assert FP8Grid().describe() == "FP8 (E4M3), per channel"
    assert FP8Grid(per_tensor=True).describe() == "FP8 (E4M3), per tensor"
    assert FP8Grid(128).describe() == "FP8 (E4M3), groups of 128"


@pytest.mark.parametrize("strategy", ["channel", "tensor", "group"])
def test_agrees_with_compressed_tensors(strategy: str) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    group = 32 if strategy == "group" else None
    settings_ = quantization.QuantizationArgs(num_bits=8, type="float", strategy=strategy, group_size=group)
    grid = FP8Grid(group, per_tensor=strategy == "tensor")
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(0))

    blocks = {"channel": weight, "tensor": weight.reshape(1, -1), "group": weight.view(48, -1, 32)}[strategy]
    scale, _ = helpers.calculate_qparams(blocks.amin(-1), blocks.amax(-1), settings_)
    ours = grid.fit(weight)["scale"]
    assert torch.equal(ours, scale.view_as(ours).bfloat16().float())  # theirs, rounded to bfloat16

    theirs = forward.fake_quantize(weight, ours if strategy != "tensor" else ours[None], None, settings_)
    assert torch.equal(grid.project(weight, {"scale": ours}), theirs)
    unrounded = scale if strategy != "channel" else scale[:, None]
    theirs = forward.fake_quantize(weight, unrounded, None, settings_)
    assert torch.equal(grid.project(weight, {"scale": unrounded.view_as(ours)}), theirs)
