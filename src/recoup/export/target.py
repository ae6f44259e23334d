"""What every target's writer gives back, and the names of weight types."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Written:
    """What was written: how many weights of each type, and what a user should know about them."""

    tensor_types: dict[str, int]
    notes: tuple[str, ...] = field(default=())


def count_types(tensors: Iterable[Tensor]) -> Counter[str]:
    """Number of tensors of each floating-point type."""
    return Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
