"""Grids as schemes of compressed-tensors; needs no library."""

import pytest
import torch

from recoup.errors import ExportError
from recoup.export.schemes import Scheme, qparams, scheme_notes, scheme_of, unpacked_on_load
from recoup.structure.grids import Grid, IntegerGrid, NF4Grid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.gguf_legacy import Q80Grid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid
from recoup.structure.spec import Constraint

SYMMETRIC, ASYMMETRIC = IntegerGrid(4, 64, symmetric=True), IntegerGrid(4, 64, symmetric=False)


@pytest.mark.parametrize(
    ("grid", "format_", "args"),
    [
        # the presets W4A16 and W4A16_ASYM, with our group size
        (SYMMETRIC, "pack-quantized", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}),
        (ASYMMETRIC, "pack-quantized", {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64}),
        (IntegerGrid(8, None, symmetric=True), "pack-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}),
        (FP8Grid(), "float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}),
        (FP8Grid(per_tensor=True), "float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}),
        (MXFP4Grid(), "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}),
        (NVFP4Grid(), "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}),
    ],
)  # fmt: skip
def test_scheme_of_each_grid(grid: Grid, format_: str, args: dict[str, object]) -> None:
    scheme = scheme_of("w", grid)
    assert (scheme.format, dict(scheme.args)) == (format_, args)


def test_codes_of_the_full_range_share_the_scheme_of_the_rest() -> None:
    assert scheme_of("w", SYMMETRIC) == scheme_of("w", IntegerGrid(4, 64, symmetric=True, full_range=True))


@pytest.mark.parametrize(("grid", "target"), [(NF4Grid(), "safetensors"), (Q80Grid(), "gguf")])
def test_a_foreign_grid_names_the_target_to_use(grid: Grid, target: str) -> None:
    with pytest.raises(ExportError, match=f"layer.weight: .*use to: {target}"):
        scheme_of("layer.weight", grid)


def test_zero_points_are_stored_around_zero() -> None:
    # one row, one group, 0 to 15 with scale 1: zero = round(−(−3) / 1) = 3, stored as 3 − 2^3 = −5
    weight_OI = torch.arange(-3.0, 13.0).view(1, 16)
    constraint = Constraint(IntegerGrid(4, None, symmetric=False)).fitted(weight_OI)
    found = qparams(constraint)
    assert found["weight_scale"].tolist() == [[1.0]]
    assert found["weight_zero_point"].tolist() == [[-5]]
    assert found["weight_zero_point"].dtype == torch.int8


def test_scales_without_dimensions_get_one() -> None:
    constraint = Constraint(FP8Grid(per_tensor=True)).fitted(torch.full((2, 4), 448.0))
    assert qparams(constraint)["weight_scale"].tolist() == [1.0]  # absmax 448 / 448
    # NVFP4: global = 448 · 6 / 6 = 448, one number; scale = E4M3(448 · 6 / 6) = 448
    found = qparams(Constraint(NVFP4Grid()).fitted(torch.full((1, 16), 6.0)))
    assert found["weight_global_scale"].tolist() == [448.0]
    assert found["weight_scale"].tolist() == [[448.0]]


def _scheme(grid: Grid) -> Scheme:
    return scheme_of("w", grid)


def test_vllm_takes_w4_and_w8_in_its_own_groups_without_a_word() -> None:
    grids = (SYMMETRIC, ASYMMETRIC, IntegerGrid(8, None, symmetric=True), FP8Grid(), MXFP4Grid())
    assert scheme_notes(map(_scheme, grids)) == ()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (IntegerGrid(3, 64, symmetric=True), "vLLM takes 4 and 8 bits only"),
        (IntegerGrid(4, 48, symmetric=True), "vLLM takes 32, 64, 128 or whole rows only"),
        (FP8Grid(16), "vLLM takes a scale per channel or tensor only"),
        (NVFP4Grid(), "transformers unpacks it to bfloat16"),
    ],
)
def test_what_a_program_does_not_take_is_said(grid: Grid, words: str) -> None:
    (note,) = scheme_notes([_scheme(grid), _scheme(grid)])
    assert words in note


def test_unpacking_on_load() -> None:
    assert not unpacked_on_load([_scheme(SYMMETRIC), _scheme(FP8Grid())])
    assert unpacked_on_load([_scheme(ASYMMETRIC), _scheme(ASYMMETRIC)])
    assert unpacked_on_load([_scheme(MXFP4Grid())])
    with pytest.raises(ExportError, match="there are 2; use to: safetensors"):
        unpacked_on_load([_scheme(ASYMMETRIC), _scheme(SYMMETRIC)])
