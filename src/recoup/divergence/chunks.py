"""How the work is cut, so that memory does not grow with tokens × vocabulary.

    logit rows    tokens whose float32 logits (student and teacher) are alive together
    slope rows    tokens whose d loss / d logits wait for the product with the hidden states; at most 512 + D on a CPU
    tile          rows of the head multiplied at a time
    block         tokens whose elementwise work is done at a time, in the processor's cache

Sizes are by device: measured on a CPU with 2 MB of level-2 cache a core; those of a GPU are set for its memory, not measured.

Shapes: N tokens, D width, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

LOGIT_ROWS = {"cpu": 512, "cuda": 2048}  # enough that copying a tile of the head is small beside its product
LOGIT_ELEMENTS = {"cpu": 2**26, "cuda": 2**27}  # of float32, for each model: at most 256 MB; a GPU 512 MB
SLOPE_ROWS = {"cpu": 512, "cuda": 2048}
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}  # of float32: 1 MB is half of a core's cache, 256 MB fill a GPU


def size(table: dict[str, int], device: torch.device) -> int:
    """The entry for a device; any accelerator is taken for a GPU."""
    return table.get(device.type, table["cuda"])


def spans(total: int, length: int) -> Iterator[slice]:
    """Slices that cover `range(total)`, all of one length but the last, which is at most `length`.

    The length is the shortest that gives as few slices: 1,024 in at most 682 is 512 + 512, not 682 + 342.
    """
    even = math.ceil(total / math.ceil(total / length)) if total else 1
    return (slice(start, min(start + even, total)) for start in range(0, total, even))


def logit_rows(vocabulary: int, device: torch.device) -> int:
    """Tokens whose float32 logits are alive together."""
    return max(1, min(size(LOGIT_ROWS, device), size(LOGIT_ELEMENTS, device) // vocabulary))


def blocks(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Rows of logits whose elementwise work stays in the cache."""
    return spans(rows, max(1, size(BLOCK_ELEMENTS, device) // vocabulary))


def slope_rows(hidden_ND: Tensor, vocabulary: int, kept: torch.dtype) -> int:
    """Tokens between two additions to the head's gradient.

    Slopes of 16 bits for all N tokens take N·V; adding in several goes takes V·D for the remainder beside the gradient
    (`gradients`) and the slopes of one go: whichever is smaller. Slopes of 32 bits lie where the logits lay.
    """
    tokens, width = hidden_ND.shape
    if kept != torch.bfloat16:
        return logit_rows(vocabulary, hidden_ND.device)
    several = size(SLOPE_ROWS, hidden_ND.device)
    return tokens if 0 < tokens <= several + width else several


def tiles(weight_VD: Tensor) -> Iterator[slice]:
    """Rows of the head, a tile at a time."""
    rows, width = weight_VD.shape
    return spans(rows, max(1, size(TILE_ELEMENTS, weight_VD.device) // width))
