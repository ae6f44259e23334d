"""Checkpoints of AWQ (arXiv 2306.00978) as AutoAWQ lays them out, version "gemm", 4 bits.

Of a module: `qweight` (I, O/8) and `qzeros` (G, O/8), eight codes a word along the outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7;
`scales` (G, O). w = scale (code − zero). Source: AutoAWQ `utils/packing_utils.py`. The scales per input channel that AWQ
searches for are folded into the layer before and leave no trace here.

Shapes: O output width, I input width, G groups along the input.
"""

from torch import Tensor

from recoup.models.foreign.bits import WORD_BITS, unpack
from recoup.models.foreign.checkpoint import Checkpoint, Matrix, Reader, integer_matrix

BITS = 4
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of each of eight neighbouring outputs


def read(checkpoint: Checkpoint, module: str) -> Matrix:
    """The matrix of a module.

    Raises:
        SourceError: the packing is another one, or a tensor is missing.
    """
    config = checkpoint.quantization
    bits, version = config.get("bits", config.get("w_bit")), str(config.get("version", "gemm")).lower()
    if bits != BITS or version != "gemm":
        raise checkpoint.refuse(f"AWQ of {bits} bits in version {version!r}", "recoup reads 4 bits, version gemm")
    scale_GO = checkpoint.get(f"{module}.scales")
    codes_IO = _outputs_in_order(checkpoint.get(f"{module}.qweight"))
    zero_GO = _outputs_in_order(checkpoint.get(f"{module}.qzeros"))
    return integer_matrix(codes_IO.T, scale_GO.T, zero_GO.T, BITS)


def _outputs_in_order(words: Tensor) -> Tensor:
    """Codes (rows, O) of words (rows, O/8)."""
    codes = unpack(words, BITS, words.shape[1] * WORD_BITS // BITS)
    return codes.view(len(codes), -1, len(PLACES))[..., list(PLACES)].flatten(1)


READER = Reader(label="AWQ", markers=(".qweight",), parts=(".qweight", ".qzeros", ".scales"), read=read)
