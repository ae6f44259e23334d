"""compressed-tensors checkpoints: every format against the library's own compressor, and whole models by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from recoup.errors import SourceError
from recoup.models.foreign import compressed_tensors
from recoup.models.foreign.bits import pack
from recoup.models.foreign.checkpoint import Checkpoint, Matrix
from recoup.models.load import load
from recoup.structure.grids import Grid, IntegerGrid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid
from recoup.structure.verify import verify
from tests.models.conftest import Parts, rewritten

W4 = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}}


def read(folder: Path, tensors: Parts, config: dict) -> Matrix:
    """One module `m`, as the reader sees it."""
    save_file({f"m.{key}": value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    checkpoint.__dict__["quantization"] = config
    return compressed_tensors.READER.read(checkpoint, "m")


def on_grid(matrix: Matrix) -> bool:
    assert matrix.grid is not None
    return torch.equal(matrix.grid.project(matrix.weight_OI, matrix.parameters), matrix.weight_OI)


def test_packed_integers_by_hand(tmp_path: Path) -> None:
    # stored codes 0 to 7 are −8 to −1; scale 0.5
    tensors = {
        "weight_packed": torch.tensor([[0x76543210]], dtype=torch.int32), "weight_shape": torch.tensor([1, 8]),
        "weight_scale": torch.tensor([[0.5]], dtype=torch.bfloat16),
    }  # fmt: skip
    matrix = read(tmp_path, tensors, W4)
    assert matrix.weight_OI.tolist() == [[-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]]
    assert matrix.grid == IntegerGrid(4, None, symmetric=True, full_range=True)
    assert on_grid(matrix)


def test_fp4_by_hand(tmp_path: Path) -> None:
    # codes in pairs, the first in the low nibble: 1 is 0.5, 9 is −0.5, 7 is 6, 15 is −6, and zeros
    packed = torch.zeros(1, 16, dtype=torch.uint8)
    packed[0, 0], packed[0, 15] = 0x91, 0xF7
    mxfp4 = read(tmp_path, {"weight_packed": packed, "weight_scale": torch.tensor([[128]], dtype=torch.uint8)}, {})
    assert mxfp4.weight_OI.tolist() == [[1.0, -1.0] + [0.0] * 28 + [12.0, -12.0]]  # times 2^(128 − 127)
    assert isinstance(mxfp4.grid, MXFP4Grid)
    assert on_grid(mxfp4)
    nvfp4 = read(
        tmp_path,
        {
            "weight_packed": packed, "weight_scale": torch.tensor([[3.0, 4.0]]).to(torch.float8_e4m3fn),
            "weight_global_scale": torch.tensor([2.0]),
        },
        {},
    )  # fmt: skip
    # 0.5 · 3/2 = 0.75 in the first sixteen, 6 · 4/2 = 12 in the others
    assert nvfp4.weight_OI.tolist() == [[0.75, -0.75] + [0.0] * 28 + [12.0, -12.0]]
    assert isinstance(nvfp4.grid, NVFP4Grid)
    assert on_grid(nvfp4)


def test_infinite_scales_are_refused(wide_model: Path, tmp_path: Path) -> None:
    def spoiled(module: str, weight_OI: Tensor) -> Parts:
        parts = as_packed(module, weight_OI)
        return parts | {"weight_scale": parts["weight_scale"] * torch.inf}

    config = {"quant_method": "compressed-tensors", **W4}
    with pytest.raises(
        SourceError, match=r"down_proj\.weight of the compressed-tensors checkpoint holds NaN or infinity"
    ):
        load(str(rewritten(wide_model, tmp_path / "student", config, spoiled)))


def test_scales_of_blocks_of_rows(tmp_path: Path) -> None:
    # 2 × 2 blocks of a 4 × 4 weight: rows 0 and 1 have scales 1 and 2, rows 2 and 3 have 4 and 8
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    matrix = read(tmp_path, {"weight": codes, "weight_scale": torch.tensor([[1.0, 2.0], [4.0, 8.0]])}, {})
    assert matrix.weight_OI.tolist() == [[1, 1, 2, 2]] * 2 + [[4, 4, 8, 8]] * 2
    assert matrix.grid == FP8Grid(group_size=2)
    assert on_grid(matrix)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"format": "marlin-24"}, "marlin-24, dropped by the library"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask, dropped by the library"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "rotated"),
        ({}, "a width that its config does not name"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, config: dict, says: str) -> None:
    tensors = {
        "weight_packed": torch.zeros(1, 1, dtype=torch.int32), "weight_shape": torch.tensor([1, 8]),
        "weight_scale": torch.ones(1, 1),
    }  # fmt: skip
    with pytest.raises(SourceError, match=says) as caught:
        read(tmp_path, tensors, config)
    assert "\n" not in str(caught.value)


def as_packed(_: str, weight_OI: Tensor) -> Parts:
    scale_OG = (weight_OI.view(len(weight_OI), -1, 32).abs().amax(-1) / 7).to(torch.bfloat16)
    codes_OI = (weight_OI / scale_OG.float().repeat_interleave(32, 1)).round().clamp(-8, 7) + 8
    return {
        "weight_packed": pack(codes_OI.to(torch.uint8), 4), "weight_scale": scale_OG,
        "weight_shape": torch.tensor(weight_OI.shape), "input_scale": torch.ones(1), "k_scale": torch.ones(1),
    }  # fmt: skip


def test_a_student_loads_with_its_grid(wide_model: Path, tmp_path: Path) -> None:
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", **W4}
    student = load(str(rewritten(wide_model, tmp_path / "student", config, as_packed)))
    grids = {constraint.grid for constraint in student.structure.constraints.values()}
    assert grids == {IntegerGrid(4, 32, symmetric=True, full_range=True)}
    assert len(student.structure.constraints) == 14
    assert verify(student.model, student.structure).exact
    assert student.structure_origin == "read from compressed-tensors: int4, groups of 32, symmetric (14 matrices)"


INTEGER = {"type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
SCHEMES: dict[str, tuple[dict[str, Any], Grid]] = {
    "int4": (INTEGER | {"num_bits": 4}, IntegerGrid(4, 32, True, full_range=True)),
    "int4 asymmetric": (INTEGER | {"num_bits": 4, "symmetric": False}, IntegerGrid(4, 32, False, full_range=True)),
    "int3 asymmetric": (INTEGER | {"num_bits": 3, "symmetric": False}, IntegerGrid(3, 32, False, full_range=True)),
    "int8": (INTEGER | {"num_bits": 8, "strategy": "channel", "group_size": None}, IntegerGrid(8, None, True, full_range=True)),
    "int8 per tensor": (INTEGER | {"num_bits": 8, "strategy": "tensor", "group_size": None}, IntegerGrid(8, None, True, full_range=True)),
    "fp8": (FLOAT | {"strategy": "channel"}, FP8Grid()),
    "fp8 in groups": (FLOAT | {"strategy": "group", "group_size": 32}, FP8Grid(32)),
    "nvfp4": (FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}, NVFP4Grid()),
    "mxfp4": (FLOAT | {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}, MXFP4Grid()),
}  # fmt: skip


@pytest.mark.parametrize("naive", [False, True], ids=["packed", "naive"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_to_the_library(tmp_path: Path, scheme: str, naive: bool) -> None:
    """Compressed by the library, and the values that it decompresses, with float32 scales so that it multiplies in float32."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    infer_module_format = pytest.importorskip("compressed_tensors.compressors.format").infer_module_format
    quantization = pytest.importorskip("compressed_tensors.quantization")
    utils = pytest.importorskip("compressed_tensors.quantization.utils")
    settings, grid = SCHEMES[scheme]
    if naive and ("fp4" in scheme or "int3" in scheme):
        pytest.skip("the library stores these packed only")
    args = quantization.QuantizationArgs(**settings)
    weights = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    weight_OI = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    size = settings.get("group_size") or {"tensor": 48 * 64, "channel": 64}[settings["strategy"]]
    groups = weight_OI.view(-1, size)
    state: dict[str, Tensor] = {"weight": weight_OI}
    if "nvfp4" in scheme:
        state["weight_global_scale"] = utils.generate_gparam(weight_OI.min(), weight_OI.max())
    scale, zero = utils.calculate_qparams(groups.amin(-1), groups.amax(-1), args, state.get("weight_global_scale"))
    shape = (-1,) if settings["strategy"] == "tensor" else (48, -1)
    state["weight_scale"], state["weight_zero_point"] = scale.float().view(shape), zero.to(torch.int8).view(shape)
    name = "naive-quantized" if naive else infer_module_format(torch.nn.Linear, weights).value
    compressor = compressors.BaseCompressor.get_value_from_registry(name)
    compressed = compressor.compress(state, weights)
    expected = compressor.decompress(compressed, weights)["weight"].float()
    config = {"config_groups": {"group_0": weights.model_dump()}}
    matrix = read(tmp_path, compressed, config)
    assert matrix.grid == grid
    assert on_grid(matrix)
    if "nvfp4" in scheme:  # the library multiplies in bfloat16 here
        torch.testing.assert_close(matrix.weight_OI, expected, rtol=2**-6, atol=0)
    else:
        assert torch.equal(matrix.weight_OI, expected)
