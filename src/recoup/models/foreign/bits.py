"""Integers of a few bits in streams of 32-bit words, lowest bit first, as GPTQ, AWQ and compressed-tensors pack them.

A row is one dense stream: integer i holds bits i·b to i·b + b − 1, so that of 3, 5, 6 and 7 bits some cross two words.
Source: compressed-tensors `pack_to_int32` (any width); AutoGPTQ `QuantLinear.pack`, whose 3-bit code writes the same stream.
"""

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

WORD_BITS = 32


def unpack(words_RW: Int32[Tensor, "R W"], bits: int, count: int) -> UInt8[Tensor, "R count"]:
    """The first `count` integers of each row.

    Raises:
        ValueError: the rows are too short.
    """
    rows, words = words_RW.shape
    if words * WORD_BITS < count * bits:
        raise ValueError(f"{words} words hold fewer than {count} integers of {bits} bits")
    bytes_Rb = np.ascontiguousarray(words_RW.numpy()).astype("<i4", copy=False).view(np.uint8)
    stream = np.unpackbits(bytes_Rb, axis=1, count=count * bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream.reshape(rows, count, bits), axis=-1, bitorder="little")[..., 0])


def pack(integers_RC: UInt8[Tensor, "R C"], bits: int) -> Int32[Tensor, "R W"]:
    """Inverse of `unpack`; the last word is filled up with zeros."""
    rows, count = integers_RC.shape
    stream = np.unpackbits(integers_RC.numpy()[..., None], axis=-1, count=bits, bitorder="little").reshape(rows, -1)
    stream = np.pad(stream, ((0, 0), (0, -(count * bits) % WORD_BITS)))
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32))
