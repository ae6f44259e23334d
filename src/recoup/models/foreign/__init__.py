"""Students made elsewhere: models that another tool compressed, loaded as ordinary weights on the grid that they came on.

Adding a tool: a file here that says what its tensors are called and reads one matrix, and a line in `READERS`.
"""

from recoup.models.foreign import awq, bitsandbytes, compressed_tensors, gptq
from recoup.models.foreign.checkpoint import Reader

# by `quant_method` in a checkpoint's config.json
READERS: dict[str, Reader] = {
    "awq": awq.READER,
    "bitsandbytes": bitsandbytes.READER,
    "compressed-tensors": compressed_tensors.READER,
    "gptq": gptq.READER,
}

__all__ = ["READERS", "Reader"]
