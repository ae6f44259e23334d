"""Blocks as bytes: by hand, both ways, and against gguf's own reader."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.structure.grids.gguf_blocks import BLOCK_GRIDS, LAYOUTS, from_bytes, to_bytes
from recoup.structure.grids.gguf_legacy import Q40Grid
from recoup.structure.grids.integer import IntegerGrid
from recoup.structure.grids.k_quants import Q4KGrid
from recoup.structure.grids.mxfp4 import MXFP4Grid

EVERY = pytest.mark.parametrize("name", LAYOUTS)


def test_q4_0_bytes_by_hand() -> None:
    # scale −2/−8 = 0.25: float16 0x3400, low byte first. Codes are stored + 8: −2 → 0, 0.25 → 9, 0 → 8.
    # A byte holds the weight 16 further on in its high half: (0, 9) → 0x90, the others (8, 8) → 0x88
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = -2.0, 0.25
    data = to_bytes(Q40Grid(), weight, Q40Grid().fit(weight))
    assert data.tobytes() == bytes([0x00, 0x34, 0x90, *[0x88] * 15])


def test_q4_k_bytes_by_hand() -> None:
    # whole numbers 0…15, twice in a sub-block: d = 1040/2^16 = 2^-6 (1 + 16/1024), float16 (15 − 6) · 1024 + 16 = 0x2410; no
    # minimum. Eight sc of 63 and m of 0: bytes 0–3 hold 63 and the others' high bits 3: 63 | 3 << 6 = 255; 4–7 the m: 0;
    # 8–11 the low bits of the others, 15. A byte of codes holds those 32 apart, here equal: 0x00, 0x11, … 0xFF
    codes = (torch.arange(256) % 16)[None].float()
    grid = Q4KGrid()
    parameters = grid.fit(codes)
    data = to_bytes(grid, grid.project(codes, parameters), parameters)
    expected = [0x10, 0x24, 0, 0, *[255] * 4, *[0] * 4, *[15] * 4, *[0x11 * code for code in range(16)] * 8]
    assert data.tobytes() == bytes(expected)


def test_mxfp4_bytes_by_hand() -> None:
    # absmax 6 = 1.5 · 2²: scale 2^(2 − 2) = 1, stored as 127. Codes 0, 0.5, 1, 1.5, 2, 3, 4, 6 are 0…7, and 8 more is a minus:
    # 6 → 7 and, 16 further on, −0.5 → 9: 0x97
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = 6.0, -0.5
    grid = MXFP4Grid()
    assert to_bytes(grid, weight, grid.fit(weight)).tobytes() == bytes([127, 0x97, *[0] * 15])


def random_blocks(name: str, seed: int) -> npt.NDArray[np.uint8]:
    """Two rows of three blocks of any bytes, but for scales of sizes that models have."""
    random = np.random.default_rng(seed)
    _, block_bytes = GGML_QUANT_SIZES[Type[name.upper()]]
    data = random.integers(0, 256, (2, 3, block_bytes), dtype=np.uint8)
    start = 0
    for field in LAYOUTS[name]:
        if field.is_float:
            scales = (random.standard_normal((2, 3, 1)) * 10.0 ** random.integers(-6, 2)).astype(np.float16)
            data[..., start : start + 2] = scales.view(np.uint8)
        elif field.name == "exponent":
            data[..., start] = random.integers(0, 253, (2, 3))  # beyond, 6 times the scale overflows
        start += field.num_bytes
    return data.reshape(2, -1)


@EVERY
@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=25)
def test_any_file_reads_as_gguf_reads_it_and_is_on_its_grid(name: str, seed: int) -> None:
    data = random_blocks(name, seed)
    weight_OI, parameters = from_bytes(name, data)
    grid = BLOCK_GRIDS[name]()
    assert np.array_equal(weight_OI.numpy(), dequantize(data, Type[name.upper()]))
    assert not torch.signbit(weight_OI[weight_OI == 0]).any()
    assert torch.equal(grid.project(weight_OI, parameters), weight_OI)
    assert torch.equal(from_bytes(name, to_bytes(grid, weight_OI, parameters))[0], weight_OI)


@EVERY
@given(seed=st.integers(0, 9999), size=st.sampled_from([1e-6, 0.02, 30.0]))
@settings(deadline=None, max_examples=6)
def test_a_projected_weight_survives_its_bytes(name: str, seed: int, size: float) -> None:
    weight = torch.randn(3, 512, generator=torch.Generator().manual_seed(seed)) * size
    weight[1] = 0
    grid = BLOCK_GRIDS[name]()
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    data = to_bytes(grid, once, parameters)
    assert data.shape == (3, 512 // 8 * grid.bits_per_weight)
    assert np.array_equal(dequantize(data, Type[name.upper()]), once.numpy())
    again, read = from_bytes(name, data)
    assert torch.equal(again, once)
    assert read.keys() == parameters.keys()
    assert all(
        torch.equal(read[key], parameters[key]) for key in parameters.keys() & {"scale", "min", "d", "dmin", "m"}
    )


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_bytes_are_those_of_gguf(name: str) -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    grid = BLOCK_GRIDS[name]()
    parameters = grid.fit(weight)
    data = to_bytes(grid, grid.project(weight, parameters), parameters)
    if name != "mxfp4":
        assert np.array_equal(data, quantize(weight.numpy(), Type[name.upper()]))
    else:  # gguf writes the code of a negative zero, which our grids do not have
        assert np.array_equal(
            dequantize(data, Type.MXFP4), dequantize(quantize(weight.numpy(), Type.MXFP4), Type.MXFP4)
        )


def test_layouts_have_the_sizes_of_gguf() -> None:
    sizes = {name: sum(field.num_bytes for field in fields) for name, fields in LAYOUTS.items()}
    assert sizes == {name: GGML_QUANT_SIZES[Type[name.upper()]][1] for name in LAYOUTS}
    assert LAYOUTS.keys() == BLOCK_GRIDS.keys()


@EVERY
def test_a_weight_off_its_grid_is_refused(name: str) -> None:
    weight = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    grid = BLOCK_GRIDS[name]()
    parameters = grid.fit(weight)
    with pytest.raises(StructureError, match="off its grid"):
        to_bytes(grid, weight, parameters)


def test_what_is_no_block_is_refused() -> None:
    weight = torch.zeros(1, 32)
    integers = IntegerGrid(4, 32, symmetric=True)
    with pytest.raises(StructureError, match="not a block format"):
        to_bytes(integers, weight, integers.fit(weight))
    with pytest.raises(StructureError, match="q4_0"):
        from_bytes("q4_00", np.zeros((1, 18), np.uint8))
    with pytest.raises(StructureError, match="19 bytes, not a multiple of 18"):
        from_bytes("q4_0", np.zeros((1, 19), np.uint8))
    with pytest.raises(StructureError, match="NaN or infinite"):
        from_bytes("q4_0", np.full((1, 18), 0x7C, np.uint8))
    with pytest.raises(StructureError, match="NaN or infinite"):
        from_bytes("mxfp4", np.full((1, 17), 255, np.uint8))
