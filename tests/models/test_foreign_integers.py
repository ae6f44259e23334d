"""GPTQ and AWQ checkpoints: packing by hand, zero points, activation order, and whole models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from recoup.errors import SourceError
from recoup.models.foreign import awq, gptq
from recoup.models.foreign.bits import pack, unpack
from recoup.models.foreign.checkpoint import Checkpoint, Matrix, Reader
from recoup.models.load import load
from recoup.structure.grids import IntegerGrid
from recoup.structure.verify import verify
from tests.models.conftest import Parts, rewritten


def words(*values: int) -> Tensor:
    """Unsigned 32-bit words as int32, a row."""
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)[None]


def test_four_bits_by_hand() -> None:
    # lowest bits first: 1 in bits 0-3, 2 in bits 4-7, … 8 in bits 28-31
    assert unpack(words(0x87654321), 4, 8).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_three_bits_cross_words_by_hand() -> None:
    # integer 10 holds bits 30 to 32: 5 = 101b puts 01b into the top of the first word and 1 into the next
    assert unpack(words(0x40000000, 0x1, 0x0), 3, 32).tolist() == [[0] * 10 + [5] + [0] * 21]


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 70), rows=st.integers(1, 3), seed=st.integers(0, 99))
def test_packing_round_trip(bits: int, count: int, rows: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(unpack(pack(codes, bits), bits, count), codes)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packing_is_that_of_compressed_tensors(bits: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(0, 2**bits, (5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), helpers.pack_to_int32(signed, bits))


def read(folder: Path, reader: Reader, config: dict, tensors: Parts) -> Matrix:
    """One module `m`, as the reader sees it."""
    save_file({f"m.{key}": value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    checkpoint.__dict__["quantization"] = config
    return reader.read(checkpoint, "m")


# eight inputs with codes 0 to 7, the same for each of eight outputs
GPTQ_CODES = words(*[0x76543210] * 8)
HALF = torch.full((1, 8), 0.5, dtype=torch.float16)


@pytest.mark.parametrize(
    ("packing", "stored", "first", "symmetric"),
    [
        ("gptq", 0x77777777, -4.0, True),  # 7 + 1 = 8, the middle: 0.5 (0 − 8) = −4
        ("gptq_v2", 0x77777777, -3.5, False),  # 7: 0.5 (0 − 7)
        ("gptq", 0xFFFFFFFF, -8.0, False),  # 15 + 1 = 16, above every code: 0.5 (0 − 16)
    ],
)
def test_gptq_by_hand(tmp_path: Path, packing: str, stored: int, first: float, symmetric: bool) -> None:
    matrix = read(
        tmp_path, gptq.READER, {"bits": 4, "checkpoint_format": packing},
        {"qweight": GPTQ_CODES, "qzeros": words(stored), "scales": HALF},
    )  # fmt: skip
    expected = torch.tensor([first + 0.5 * code for code in range(8)]).expand(8, 8)
    assert torch.equal(matrix.weight_OI, expected)
    assert matrix.grid == IntegerGrid(4, None, symmetric, full_range=True)
    assert torch.equal(matrix.grid.project(expected, matrix.parameters), expected)


def test_gptq_in_activation_order_is_exact_and_free(tmp_path: Path) -> None:
    matrix = read(
        tmp_path, gptq.READER, {"bits": 4, "desc_act": True},
        {
            "qweight": GPTQ_CODES, "qzeros": torch.cat([words(0x77777777)] * 2),
            "scales": torch.tensor([[1.0] * 8, [2.0] * 8]).half(),
            "g_idx": torch.tensor([1, 0, 1, 0, 1, 0, 1, 0], dtype=torch.int32),
        },
    )  # fmt: skip
    # scales 2, 1, 2, 1, … times codes − 8
    expected = torch.tensor([2.0 * -8, -7, 2.0 * -6, -5, 2.0 * -4, -3, 2.0 * -2, -1])
    assert torch.equal(matrix.weight_OI, expected.expand(8, 8))
    assert matrix.grid is None
    assert matrix.free == "groups in activation order, which no grid here has"


def test_a_scale_of_zero_makes_zeros_on_the_grid(tmp_path: Path) -> None:
    matrix = read(
        tmp_path, gptq.READER, {"bits": 4},
        {"qweight": GPTQ_CODES, "qzeros": words(0x77777777), "scales": torch.zeros(1, 8).half()},
    )  # fmt: skip
    assert matrix.grid is not None
    assert torch.equal(matrix.weight_OI, torch.zeros(8, 8))
    assert torch.equal(matrix.grid.project(matrix.weight_OI, matrix.parameters), torch.zeros(8, 8))


def test_awq_by_hand(tmp_path: Path) -> None:
    # one input, eight outputs with codes 0 to 7 in the word's order 0, 2, 4, 6, 1, 3, 5, 7; all zero points 8
    matrix = read(
        tmp_path, awq.READER, {"bits": 4, "version": "gemm"},
        {"qweight": words(0x75316420), "qzeros": words(0x88888888), "scales": HALF},
    )  # fmt: skip
    assert matrix.weight_OI[:, 0].tolist() == [-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5]
    assert matrix.grid == IntegerGrid(4, None, symmetric=True, full_range=True)


def test_awq_unpacks_as_compressed_tensors_does(tmp_path: Path) -> None:
    convert = pytest.importorskip("compressed_tensors.entrypoints.convert")
    generator = torch.Generator().manual_seed(0)
    qweight = torch.randint(-(2**31), 2**31 - 1, (32, 3), generator=generator).int()
    qzeros = torch.randint(-(2**31), 2**31 - 1, (2, 3), generator=generator).int()
    scales = torch.rand(2, 24, generator=generator).half() + 0.1
    matrix = read(tmp_path, awq.READER, {"bits": 4}, {"qweight": qweight, "qzeros": qzeros, "scales": scales})
    codes_OI, scale_OG, zero_OG = convert.AutoAWQConverter()._convert_gemm_module(qweight, scales, qzeros)
    expected = (codes_OI.float().view(24, 2, 16) - zero_OG.float()[..., None]) * scale_OG.float()[..., None]
    assert torch.equal(matrix.weight_OI, expected.flatten(1))


@pytest.mark.parametrize(
    ("reader", "config", "says"),
    [
        (gptq.READER, {"bits": 5}, "GPTQ of 5 bits"),
        (gptq.READER, {"bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        (awq.READER, {"bits": 4, "version": "gemv"}, "version 'gemv'"),
        (gptq.READER, {"bits": 4}, r"lacks the tensor m\.qzeros"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, reader: Reader, config: dict, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        read(tmp_path, reader, config, {"qweight": GPTQ_CODES, "scales": HALF})
    assert "\n" not in str(caught.value)


def random_codes(weight_OI: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (O, I), scales (O, G) and zero points (O, G), from 1 so that GPTQ can store one less."""
    generator = torch.Generator().manual_seed(weight_OI.shape[0])
    outputs = len(weight_OI)
    codes_OI = torch.randint(0, 2**bits, weight_OI.shape, generator=generator, dtype=torch.uint8)
    zero_OG = torch.randint(1, 2**bits, (outputs, groups), generator=generator, dtype=torch.uint8)
    return codes_OI, (torch.rand(outputs, groups, generator=generator) * 0.02 + 0.01).half(), zero_OG


def as_gptq(bits: int) -> Callable[[str, Tensor], Parts]:
    def parts(_: str, weight_OI: Tensor) -> Parts:
        codes_OI, scale_OG, zero_OG = random_codes(weight_OI, bits, weight_OI.shape[1] // 32)
        return {
            "qweight": pack(codes_OI, bits).T, "qzeros": pack((zero_OG - 1).T.contiguous(), bits), "scales": scale_OG.T,
            "g_idx": (torch.arange(weight_OI.shape[1]) // 32).int(),
        }  # fmt: skip

    return parts


def as_awq(_: str, weight_OI: Tensor) -> Parts:
    codes_OI, scale_OG, zero_OG = random_codes(weight_OI, 4, weight_OI.shape[1] // 32)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    packed = [pack(t.T.reshape(t.shape[1], -1, 8)[..., order].flatten(1), 4) for t in (codes_OI, zero_OG)]
    return {"qweight": packed[0], "qzeros": packed[1], "scales": scale_OG.T}


STUDENTS: list[tuple[str, int, Callable[[str, Tensor], Parts]]] = [
    ("gptq", 2, as_gptq(2)), ("gptq", 3, as_gptq(3)), ("gptq", 4, as_gptq(4)), ("gptq", 8, as_gptq(8)), ("awq", 4, as_awq),
]  # fmt: skip


@pytest.mark.parametrize(("method", "bits", "parts"), STUDENTS)
def test_a_student_loads_with_its_grid(
    wide_model: Path, tmp_path: Path, method: str, bits: int, parts: Callable[[str, Tensor], Parts]
) -> None:
    config = {"quant_method": method, "bits": bits, "group_size": 32}
    student = load(str(rewritten(wide_model, tmp_path / "student", config, parts)))
    assert {constraint.grid for constraint in student.structure.constraints.values()} == {
        IntegerGrid(bits, 32, symmetric=False, full_range=True)
    }
    assert len(student.structure.constraints) == 14
    assert not any(constraint.refit for constraint in student.structure.constraints.values())
    assert verify(student.model, student.structure).exact
    label = {"gptq": "GPTQ", "awq": "AWQ"}[method]
    assert student.structure_origin == f"read from {label}: int{bits}, groups of 32, asymmetric (14 matrices)"
    name = "model.layers.1.mlp.down_proj"
    weight_OI = student.model.get_submodule(name).weight
    codes_OI, scale_OG, zero_OG = random_codes(weight_OI, bits, 4)
    steps = codes_OI.float() - zero_OG.float().repeat_interleave(32, 1)
    assert torch.equal(weight_OI, steps * scale_OG.float().repeat_interleave(32, 1))


def test_gptq_settings_in_their_own_file(wide_model: Path, tmp_path: Path) -> None:
    folder = rewritten(wide_model, tmp_path / "old", {}, as_gptq(4))
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "desc_act": false}')
    assert len(load(str(folder)).structure.constraints) == 14
