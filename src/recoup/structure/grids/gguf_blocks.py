"""Blocks as the bytes of a GGUF file, both ways, for weights that are on a grid of llama.cpp.

A block is a row of fields (`LAYOUTS`). A field holds `width` bits, from bit `shift` on, of each of some small integers;
those are laid out (blocks, parts, bytes), and the parts share a byte, the first in its lowest bits. Source: ggml-org/llama.cpp,
ggml/src/ggml-common.h (`block_q*`) and the loops at the end of `quantize_row_q*_ref` in ggml-quants.c. Checked against
`gguf.quants.dequantize`.

Shapes: O output width, I input width, G blocks along the input, S weights in a block, B sub-blocks in one.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recoup.errors import StructureError, unknown_name
from recoup.structure.grids.base import Grid, Parameters, WeightOI
from recoup.structure.grids.gguf_legacy import BlockGrid
from recoup.structure.grids.k_quants import GGUF_GRIDS, with_minimum, without_minimum
from recoup.structure.grids.mxfp4 import MXFP4Grid

Bytes: TypeAlias = npt.NDArray[np.uint8]
BLOCK_GRIDS: dict[str, type[Grid]] = {**GGUF_GRIDS, "mxfp4": MXFP4Grid}
SC_OFFSET = {"q3_k": 32, "q6_k": 0}  # what is added to sc before it is stored; Q6_K stores two's complement

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # MXFP4's codes; the fourth bit is the sign
MANTISSA_BITS = 23  # of a float32
SMALLEST_E8M0 = 2.0**-127  # exponent 0, which as a float32 is no normal number


@dataclass(frozen=True)
class Field:
    """Some bits of some integers, or a float16 (`width` 16).

    Attributes:
        name: of the integers: `codes`, `sc`, `sc_m` (sc, then m), `packed` (their 6 bits in 12 bytes), `exponent`; or of
            the float16.
        shift: lowest bit taken.
        width: bits taken.
        shape: blocks, parts and bytes that the integers are laid out in.
    """

    name: str
    shift: int = 0
    width: int = 16
    shape: tuple[int, int, int] = (1, 1, 1)

    @property
    def num_bytes(self) -> int:
        """Bytes that the field takes in a block."""
        return 2 if self.is_float else self.shape[0] * self.shape[2]

    @property
    def is_float(self) -> bool:
        """Whether this is a float16."""
        return self.width == 16  # noqa: PLR2004


_NIBBLES = Field("codes", 0, 4, (1, 2, 16))
_FIFTH_BITS = Field("codes", 4, 1, (4, 8, 1))
_PAIRS = Field("codes", 0, 2, (2, 4, 32))
_K_NIBBLES = Field("codes", 0, 4, (4, 2, 32))
_K_HEAD = (Field("d"), Field("dmin"), Field("packed", 0, 8, (1, 1, 12)))

LAYOUTS: dict[str, tuple[Field, ...]] = {
    "q4_0": (Field("scale"), _NIBBLES),
    "q4_1": (Field("scale"), Field("min"), _NIBBLES),
    "q5_0": (Field("scale"), _FIFTH_BITS, _NIBBLES),
    "q5_1": (Field("scale"), Field("min"), _FIFTH_BITS, _NIBBLES),
    "q8_0": (Field("scale"), Field("codes", 0, 8, (1, 1, 32))),
    "mxfp4": (Field("exponent", 0, 8), _NIBBLES),
    "q2_k": (Field("sc_m", 0, 4, (1, 2, 16)), _PAIRS, Field("d"), Field("dmin")),
    "q3_k": (
        Field("codes", 2, 1, (1, 8, 32)), _PAIRS, Field("sc", 0, 4, (1, 2, 8)), Field("sc", 4, 2, (1, 4, 4)), Field("d"),
    ),
    "q4_k": (*_K_HEAD, _K_NIBBLES),
    "q5_k": (*_K_HEAD, Field("codes", 4, 1, (1, 8, 32)), _K_NIBBLES),
    "q6_k": (
        Field("codes", 0, 4, (2, 2, 64)), Field("codes", 4, 2, (2, 4, 32)), Field("sc", 0, 8, (1, 1, 16)), Field("d"),
    ),
}  # fmt: skip


def to_bytes(grid: Grid, weight_OI: WeightOI, parameters: Parameters) -> Bytes:
    """Bytes of a weight that is on its grid, (O, bytes per row), as a GGUF file stores them.

    Raises:
        StructureError: not a grid of llama.cpp, or the bytes would not give the weight bit for bit.
    """
    if isinstance(grid, MXFP4Grid):
        integers = _mxfp4_integers(weight_OI, parameters)
    elif isinstance(grid, BlockGrid):
        integers = _integers(grid, grid.codes(weight_OI, parameters), parameters)
    else:
        raise StructureError(f"{grid.describe()} is not a block format of a GGUF file; known: {', '.join(LAYOUTS)}")
    fields = [
        _halves(parameters[field.name]) if field.is_float else _pack(integers[field.name], field)
        for field in LAYOUTS[grid.format]
    ]
    data_OGb = np.concatenate(fields, axis=-1)
    data = data_OGb.reshape(len(data_OGb), -1)
    if not torch.equal(from_bytes(grid.format, data)[0], weight_OI.float().cpu()):
        raise StructureError(f"a weight is off its grid ({grid.describe()}); project it before writing")
    return data


def from_bytes(format: str, data: Bytes) -> tuple[WeightOI, Parameters]:  # noqa: A002
    """The weight (O, I) that bytes (O, bytes per row) of a GGUF file stand for, and its grid's parameters.

    Raises:
        StructureError: an unknown format, rows that are no whole blocks, or a scale that is NaN or infinite.
    """
    if format not in LAYOUTS:
        raise StructureError(unknown_name("llama.cpp format", format, LAYOUTS))
    block_bytes = sum(field.num_bytes for field in LAYOUTS[format])
    if data.shape[1] % block_bytes:
        raise StructureError(f"{format}: rows of {data.shape[1]} bytes, not a multiple of {block_bytes}")
    floats, integers = _read(format, data.reshape(len(data), -1, block_bytes))
    weight_OI, parameters = _from_mxfp4(integers) if format == "mxfp4" else _weight(format, floats, integers)
    if not torch.isfinite(weight_OI).all():
        raise StructureError(f"{format}: a scale in the file is NaN or infinite")
    return weight_OI, parameters


def _weight(format: str, floats: dict[str, Tensor], integers: dict[str, Bytes]) -> tuple[WeightOI, Parameters]:  # noqa: A002
    grid, parameters = GGUF_GRIDS[format](), _parameters(format, floats, integers)
    codes = integers["codes"]
    codes_OGS = torch.from_numpy(codes.view(np.int8) if format == "q8_0" else codes).float() + _offset(grid)
    return grid.values(codes_OGS, parameters), parameters


def _mxfp4_integers(weight_OI: WeightOI, parameters: Parameters) -> dict[str, Bytes]:
    """Exponents as E8M0 stores them, which are a float32's own, and codes: magnitude, then sign."""
    scale_OG = parameters["scale"]
    units_OGS = weight_OI.float().reshape(*scale_OG.shape, -1) / scale_OG[..., None]
    codes_OGS = torch.searchsorted(E2M1.to(units_OGS.device), units_OGS.abs()) + 8 * (units_OGS < 0)
    exponent_OG1 = (scale_OG.view(torch.int32) >> MANTISSA_BITS)[..., None]
    return {"exponent": _unsigned(exponent_OG1), "codes": _unsigned(codes_OGS)}


def _from_mxfp4(integers: dict[str, Bytes]) -> tuple[WeightOI, Parameters]:
    exponent_OG1, codes_OGS = (torch.from_numpy(integers[name]).int() for name in ("exponent", "codes"))
    scale_OG1 = (exponent_OG1 << MANTISSA_BITS).view(torch.float32).clamp_min(SMALLEST_E8M0)
    units_OGS = E2M1[codes_OGS & 7] * torch.where(codes_OGS > 7, -1.0, 1.0)  # noqa: PLR2004  three bits, then the sign
    return (units_OGS * scale_OG1).flatten(1).add_(0.0), {"scale": scale_OG1[..., 0].contiguous()}


def _offset(grid: BlockGrid) -> int:
    """The code that is stored as 0; Q8_0 stores two's complement."""
    return 0 if grid.format == "q8_0" else grid.low


def _integers(grid: BlockGrid, codes_OGS: Tensor, parameters: Parameters) -> dict[str, Bytes]:
    """Codes and scales as the small unsigned integers that are stored."""
    integers = {"codes": _unsigned(codes_OGS - _offset(grid))}
    if "m" in parameters:
        sc_m = _unsigned(torch.cat([parameters["sc"], parameters["m"]], dim=-1))
        integers |= {"sc_m": sc_m, "packed": _pack_6_bits(sc_m) if grid.format != "q2_k" else sc_m}
    elif "sc" in parameters:
        used_OG1 = parameters["d"][..., None] != 0  # all of an empty block is stored as 0, as llama.cpp does
        integers["sc"] = _unsigned((parameters["sc"].int() + SC_OFFSET[grid.format]) * used_OG1)
        empty_OGB1 = (parameters["scale"] == 0).cpu().numpy()[..., None]
        blocked = integers["codes"].reshape(*integers["sc"].shape, -1)
        integers["codes"] = np.where(empty_OGB1, np.uint8(0), blocked).reshape(integers["codes"].shape)
    return integers


def _read(format: str, data_OGb: Bytes) -> tuple[dict[str, Tensor], dict[str, Bytes]]:  # noqa: A002
    """The float16 numbers, as float32, and the integers of each block."""
    floats: dict[str, Tensor] = {}
    integers: dict[str, Bytes] = {}
    start = 0
    for field in LAYOUTS[format]:
        part = data_OGb[..., start : start + field.num_bytes]
        start += field.num_bytes
        if field.is_float:
            floats[field.name] = torch.from_numpy(
                np.ascontiguousarray(part).view(np.float16)[..., 0].astype(np.float32)
            )
        else:
            bits = _unpack(part, field)
            integers[field.name] = integers[field.name] | bits if field.name in integers else bits
    return floats, integers


def _parameters(format: str, floats: dict[str, Tensor], integers: dict[str, Bytes]) -> Parameters:  # noqa: A002
    if "d" not in floats:
        return {**floats, **{f"pick_{name}": value for name, value in floats.items()}}
    if "dmin" not in floats:
        signed = (integers["sc"] - np.uint8(SC_OFFSET[format])).view(np.int8)
        return without_minimum(floats["d"], torch.from_numpy(signed))
    sc_m = integers["sc_m"] if "sc_m" in integers else _unpack_6_bits(integers["packed"])
    sc, m = (part.contiguous() for part in torch.from_numpy(sc_m).chunk(2, dim=-1))
    return with_minimum(floats["d"], sc, floats["dmin"], m)


def _pack(integers_OGn: Bytes, field: Field) -> Bytes:
    bits = (integers_OGn >> field.shift) & (2**field.width - 1)
    parts = bits.reshape(*integers_OGn.shape[:2], *field.shape)
    shifts = field.width * np.arange(field.shape[1], dtype=np.uint8)[:, None]
    packed = np.bitwise_or.reduce(parts << shifts, axis=-2)
    return packed.reshape(*integers_OGn.shape[:2], -1)


def _unpack(data_OGb: Bytes, field: Field) -> Bytes:
    blocks, parts, num_bytes = field.shape
    shifts = field.width * np.arange(parts, dtype=np.uint8)[:, None]
    data = data_OGb.reshape(*data_OGb.shape[:2], blocks, 1, num_bytes) >> shifts
    bits = (data & np.uint8(2**field.width - 1)) << np.uint8(field.shift)
    return bits.reshape(*data_OGb.shape[:2], -1)


def _pack_6_bits(sc_m_OGn: Bytes) -> Bytes:
    """Eight sc and eight m of 6 bits in 12 bytes: the low ones whole, the high bits of the others above them, their rest."""
    low_sc, high_sc, low_m, high_m = np.split(sc_m_OGn, 4, axis=-1)
    parts = [low_sc | (high_sc >> 4 << 6), low_m | (high_m >> 4 << 6), (high_sc & 15) | ((high_m & 15) << 4)]
    return np.concatenate(parts, axis=-1)


def _unpack_6_bits(packed_OGb: Bytes) -> Bytes:
    sc, m, rest = np.split(packed_OGb, 3, axis=-1)
    return np.concatenate([sc & 63, (rest & 15) | (sc >> 6 << 4), m & 63, (rest >> 4) | (m >> 6 << 4)], axis=-1)


def _halves(value_OG: Tensor) -> Bytes:
    return value_OG.cpu().numpy().astype(np.float16)[..., None].view(np.uint8)


def _unsigned(value: Tensor) -> Bytes:
    """Whole numbers as bytes; negative ones in two's complement."""
    return value.int().cpu().numpy().astype(np.uint8)
