"""Which GGUF type holds a weight, and whether its bytes give the weight back."""

import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.export.gguf_weights import Storage, encode, storage
from recoup.structure.grids import IntegerGrid, NF4Grid
from recoup.structure.grids.base import Grid
from recoup.structure.grids.k_quants import GGUF_GRIDS
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.spec import Constraint


def on_grid(grid: Grid, outputs: int = 3, inputs: int = 64, seed: int = 0) -> tuple[torch.Tensor, Constraint]:
    weight_OI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    constraint = Constraint(grid).fitted(weight_OI)
    return constraint.project(weight_OI), constraint


def read_back(weight_OI: torch.Tensor, how: Storage) -> torch.Tensor:
    data = encode(weight_OI, how)
    assert data.nbytes == how.num_bytes(weight_OI.numel())
    return torch.from_numpy(dequantize(data, how.type))


def test_integer_codes_are_the_nibbles_of_q4_0() -> None:
    grid = IntegerGrid(bits=4, group_size=32, symmetric=True)
    weight_OI = torch.cat([torch.full((1, 16), 1.5), torch.full((1, 16), -3.5)], dim=1)
    constraint = Constraint(grid, {"scale": torch.tensor([[0.5]])})
    how = storage(weight_OI, constraint, "f32")
    # float16 0.5 is 0x3800; codes 3 and −7 are stored as 3 + 8 = 11 = 0xB and −7 + 8 = 1, the later in the high nibble
    assert encode(weight_OI, how).tobytes() == b"\x00\x38" + b"\x1b" * 16
    assert how.type.name == "Q4_0"
    assert how.exact


@pytest.mark.parametrize(
    ("bits", "type_"), [(2, "Q4_0"), (3, "Q4_0"), (4, "Q4_0"), (5, "Q5_0"), (6, "Q8_0"), (8, "Q8_0")]
)
@pytest.mark.parametrize("group_size", [32, 64, None])
def test_symmetric_integers_are_held_bit_for_bit(bits: int, type_: str, group_size: int | None) -> None:
    weight_OI, constraint = on_grid(IntegerGrid(bits, group_size, symmetric=True))
    how = storage(weight_OI, constraint, "f16")
    assert how.type.name == type_
    assert torch.equal(read_back(weight_OI, how), weight_OI)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_the_lowest_code_of_a_full_range_is_held_too(bits: int) -> None:
    lowest = -(2 ** (bits - 1))
    weight_OI = torch.zeros(1, 32)
    weight_OI[0, 7] = lowest * 0.25
    constraint = Constraint(IntegerGrid(bits, 32, symmetric=True, full_range=True), {"scale": torch.tensor([[0.25]])})
    how = storage(weight_OI, constraint, "f16")
    assert how.grid is not None
    assert torch.equal(read_back(weight_OI, how), weight_OI)


@pytest.mark.parametrize("name", sorted(GGUF_GRIDS))
def test_formats_of_llama_cpp_are_written_as_they_are(name: str) -> None:
    weight_OI, constraint = on_grid(GGUF_GRIDS[name](), inputs=256)
    how = storage(weight_OI, constraint, "f16")
    assert how.type.name.lower() == name
    assert how.exact
    assert torch.equal(read_back(weight_OI, how), weight_OI)


def test_mxfp4_is_written_as_it_is() -> None:
    weight_OI, constraint = on_grid(MXFP4Grid())
    how = storage(weight_OI, constraint, "f16")
    assert how.type.name == "MXFP4"
    assert torch.equal(read_back(weight_OI, how), weight_OI)


@pytest.mark.parametrize(
    "grid",
    [
        IntegerGrid(4, 32, symmetric=False),  # a minimum that float16 does not hold
        IntegerGrid(8, 16, symmetric=True),  # two scales in a block of 32; 11 + 7 bits are more than float16's 11
        NF4Grid(),
    ],
)
def test_what_no_type_holds_is_rounded_and_said(grid: Grid) -> None:
    weight_OI, constraint = on_grid(grid)
    how = storage(weight_OI, constraint, "f16")
    assert how.type.name == "F16"
    assert not how.exact
    assert storage(weight_OI, constraint, "f32").exact


def test_scales_that_float16_does_not_hold_are_not_rounded_into_blocks() -> None:
    scale = torch.tensor([[0.1]])  # float32's 0.1 has 24 significant bits
    weight_OI = torch.full((1, 32), 3.0) * scale
    constraint = Constraint(IntegerGrid(4, 32, symmetric=True), {"scale": scale})
    assert storage(weight_OI, constraint, "f32") == Storage(storage(weight_OI, None, "f32").type, exact=True)


@pytest.mark.parametrize(
    ("scale", "code", "type_"),
    [
        (2.0**-3, 5.0, "F16"),  # 0.625
        (2.0**-30, 5.0, "BF16"),  # below float16, which ends at 2^-24
    ],
)
def test_values_that_a_half_type_holds_exactly_are_written_in_it(scale: float, code: float, type_: str) -> None:
    weight_OI = torch.full((1, 16), scale * code)
    constraint = Constraint(IntegerGrid(4, 16, symmetric=True), {"scale": torch.full((1, 1), scale)})
    how = storage(weight_OI, constraint, "q8_0")
    assert (how.type.name, how.exact) == (type_, True)
    assert torch.equal(read_back(weight_OI, how), weight_OI)


def test_masked_weights_keep_their_grid_where_it_has_a_zero() -> None:
    weight_OI = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + 3  # so that Q4_1's blocks have no zero
    mask_OI = torch.arange(64).expand(4, 64) % 2 == 0
    for grid, exact in [(IntegerGrid(4, 32, symmetric=True), True), (GGUF_GRIDS["q4_1"](), False)]:
        constraint = Constraint(grid, grid.fit(weight_OI), mask_OI)
        projected_OI = constraint.project(weight_OI)
        how = storage(projected_OI, constraint, "f16")
        assert how.exact == exact
        assert (read_back(projected_OI, how)[~mask_OI] == 0).all()


def test_free_weights_take_the_type_asked_for_where_it_fits() -> None:
    weight_OI = torch.randn(2, 64)
    assert storage(weight_OI, None, "bf16").type.name == "BF16"
    assert storage(weight_OI, Constraint(mask_OI=weight_OI > 0), "q8_0").type.name == "Q8_0"
    assert storage(weight_OI[:, :48], None, "q8_0").type.name == "F16"  # 48 is no multiple of 32
    assert storage(weight_OI * 1e6, None, "f16").type.name == "F32"  # float16 ends at 65504
    assert storage(weight_OI[0], None, "q8_0").type.name == "F32"


def test_bytes_are_never_written_for_a_weight_off_its_blocks() -> None:
    weight_OI, constraint = on_grid(GGUF_GRIDS["q4_0"]())
    how = storage(weight_OI, constraint, "f16")
    with pytest.raises(StructureError, match="off its grid"):
        encode(weight_OI + 1e-3, how)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.integers(2, 8),
    group_size=st.sampled_from([16, 32, 64, 96, None]),
    symmetric=st.booleans(),
    exponent=st.integers(-12, 6),
    seed=st.integers(0, 1000),
)
def test_what_is_called_exact_is(bits: int, group_size: int | None, symmetric: bool, exponent: int, seed: int) -> None:
    inputs = 2 * (group_size or 48)
    weight_OI, constraint = on_grid(IntegerGrid(bits, group_size, symmetric), 2, inputs, seed)
    constraint = constraint.fitted(weight_OI * 2.0**exponent)
    weight_OI = constraint.project(weight_OI * 2.0**exponent)
    how = storage(weight_OI, constraint, "f16")
    back_OI = read_back(weight_OI, how)
    assert how.exact == torch.equal(back_OI, weight_OI)
    assert np.isfinite(back_OI.numpy()).all()
