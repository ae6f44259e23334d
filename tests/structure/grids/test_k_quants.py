"""Q2_K to Q6_K: by hand, then against blocks that llama.cpp quantized.

`data/llama_cpp_k_quants.npz` holds ten super-blocks (zeros; a negative and a positive constant; normal weights; sub-blocks of
very different sizes; heavy tails; nine zeros in ten; 1e-5; far from zero; integers) and what `ggml_quantize_chunk` of
libggml-base 0.25.3 (llama-cpp-python 0.3.36, gcc 12, x86-64), called through ctypes with no importance matrix, made of them.
"""

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.structure.grids.gguf_blocks import from_bytes, to_bytes
from recoup.structure.grids.gguf_legacy import BlockGrid
from recoup.structure.grids.k_quants import FALLBACK, Q2KGrid, Q3KGrid, Q4KGrid, Q5KGrid, Q6KGrid, gguf_grid

GRIDS = [Q2KGrid(), Q3KGrid(), Q4KGrid(), Q5KGrid(), Q6KGrid()]
EVERY = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.format)
FIXTURE = Path(__file__).parent / "data" / "llama_cpp_k_quants.npz"


@pytest.mark.parametrize("grid", [Q3KGrid(), Q6KGrid()], ids=lambda grid: grid.format)
def test_symmetric_by_hand(grid: BlockGrid) -> None:
    # sub-blocks of whole numbers that include the lowest code: scale 1 fits each without error, so the super-block stores
    # sc = −32 (Q6_K: −128) for all of them and d = 1/sc, a power of two: all exact
    codes = torch.arange(256) * 7 % (grid.high - grid.low + 1) + grid.low
    codes[::16] = grid.low
    weight = codes[None].float()
    parameters = grid.fit(weight)
    lowest = {"q3_k": -32, "q6_k": -128}[grid.format]
    assert (parameters["sc"] == lowest).all()
    assert parameters["d"].item() == 1 / lowest
    assert torch.equal(grid.project(weight, parameters), weight)


@pytest.mark.parametrize(("grid", "top"), [(Q2KGrid(), 15), (Q4KGrid(), 63), (Q5KGrid(), 63)])
def test_minimum_by_hand(grid: BlockGrid, top: int) -> None:
    # whole numbers from 0 to the highest code: scale 1 and minimum 0 fit without error, so sc = top and d = 1/top in float16.
    # 1/15: steps of 2^-14, 1092.27 of them → 1092; 1092 · 15 / 2^14 = 0.999755859375
    # 1/63: steps of 2^-16, 1040.25 of them → 1040; 1040 · 63 / 2^16 = 0.999755859375 as well
    codes = (torch.arange(256) % (grid.high + 1))[None].float()
    parameters = grid.fit(codes)
    assert (parameters["sc"] == top).all()
    assert parameters["d"].item() == {15: 1092 / 2**14, 63: 1040 / 2**16}[top]
    assert (parameters["min"] == 0).all()
    assert torch.equal(grid.project(codes, parameters), codes * 0.999755859375)


@pytest.mark.parametrize(("grid", "top"), [(Q2KGrid(), 15), (Q4KGrid(), 63), (Q5KGrid(), 63)])
def test_a_negative_constant_is_a_minimum(grid: BlockGrid, top: int) -> None:
    # every sub-block: scale 0, minimum 1, so m = top and dmin = 1/top, which misses 1 as above
    weight = torch.full((1, 256), -1.0)
    parameters = grid.fit(weight)
    assert (parameters["scale"] == 0).all()
    assert (parameters["m"] == top).all()
    assert torch.equal(grid.project(weight, parameters), torch.full((1, 256), -0.999755859375))


def differing_blocks(grid: BlockGrid, weight: npt.NDArray[np.float32], data: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """How many blocks differ from llama.cpp's in a weight, and in a byte while no sub-block's scale is 0.

    Where a scale is 0 llama.cpp leaves codes from its search behind, which stand for nothing.
    """
    weight_OI = torch.from_numpy(weight)
    parameters = grid.fit(weight_OI)
    once_OI = grid.project(weight_OI, parameters)
    reference_OI = torch.from_numpy(dequantize(data, Type[grid.format.upper()]))
    differs = (once_OI != reference_OI).view(-1, 256).any(1)
    ours = to_bytes(grid, once_OI, parameters).reshape(-1, grid.block_bytes)
    bytes_differ = torch.from_numpy((ours != data.reshape(ours.shape)).any(1))
    used = (parameters["scale"] != 0).flatten(0, 1).all(1)
    return int(differs.sum()), int((bytes_differ & used).sum())


@EVERY
def test_agrees_with_blocks_of_llama_cpp(grid: BlockGrid) -> None:
    with np.load(FIXTURE) as fixture:
        assert differing_blocks(grid, fixture["weight"], fixture[grid.format]) == (0, 0)
        # and the scales are found, not only the weights: in all but the block of 1e-5, where d is 0 or nearly so
        _, theirs = from_bytes(grid.format, fixture[grid.format])
        ours = grid.fit(torch.from_numpy(fixture["weight"]))
        kept = [0, 1, 2, 3, 4, 5, 6, 8, 9]
        assert all(torch.equal(ours[key][kept], theirs[key][kept]) for key in ("d", "scale"))


@pytest.mark.slow
@EVERY
def test_agrees_with_llama_cpp(grid: BlockGrid) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base*"))))
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    random = np.random.default_rng(0)
    weight = (random.standard_normal((200, 25600)) * np.exp(random.normal(-3, 2, (200, 1)))).astype(np.float32)
    data = np.zeros((200, 100 * grid.block_bytes), np.uint8)
    kind = Type[grid.format.upper()]
    assert quantize(kind, weight.ctypes.data, data.ctypes.data, 0, *weight.shape, None) == data.size
    assert differing_blocks(grid, weight, data) == (0, 0)


@EVERY
@given(seed=st.integers(0, 9999), size=st.sampled_from([0.02, 1.0, 1e3]))
@settings(deadline=None, max_examples=6)
def test_error_on_normal_weights(grid: BlockGrid, seed: int, size: float) -> None:
    # uniform codes over ±2.2 (the extremes of 32 normal numbers) are 4.4/15 = 0.29 apart in Q4_K, an error of 0.29/√12 = 0.085
    weight = torch.randn(2, 512, generator=torch.Generator().manual_seed(seed)) * size
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert torch.equal(grid.project(once, parameters), once)
    error = (once - weight).square().mean().sqrt()
    assert error < {"q2_k": 0.4, "q3_k": 0.2, "q4_k": 0.09, "q5_k": 0.045, "q6_k": 0.025}[grid.format] * size


@EVERY
def test_other_inputs_name_the_format_that_fits(grid: BlockGrid) -> None:
    with pytest.raises(StructureError, match=f"blocks of 256, not 576; use {FALLBACK[grid.format].upper()}"):
        grid.fit(torch.zeros(2, 576))


def test_gguf_grid_falls_back_as_llama_cpp_does() -> None:
    names = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1"]
    assert [gguf_grid(name, 512).format for name in names] == names
    assert [gguf_grid(name, 576).format for name in names] == ["q4_0", "q4_0", "q5_0", "q5_1", "q8_0", "q4_1"]
    with pytest.raises(StructureError, match="not 100"):
        gguf_grid("q4_k", 100)
    with pytest.raises(StructureError, match="q4_k"):
        gguf_grid("q4_km", 512)


def test_bits_per_weight() -> None:
    # Q4_K: 256 · 4 + 8 · (6 + 6) + 2 · 16 = 1152 bits, / 256 = 4.5; Q6_K: 256 · 6 + 16 · 8 + 16 = 1680, / 256 = 6.5625
    assert [grid.bits_per_weight for grid in GRIDS] == [2.625, 3.4375, 4.5, 5.5, 6.5625]
    assert not any(grid.quick_fit or grid.trainable_scale for grid in GRIDS)
