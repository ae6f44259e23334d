"""Quantization grids: the values a weight may take, a format (or a family of formats) a file.

Adding one: a frozen dataclass in a file here, a line in `GRIDS`, a test.
"""

from recoup.structure.grids.base import Grid, Parameters
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.gguf_legacy import Q40Grid, Q41Grid, Q50Grid, Q51Grid, Q80Grid
from recoup.structure.grids.integer import IntegerGrid
from recoup.structure.grids.k_quants import Q2KGrid, Q3KGrid, Q4KGrid, Q5KGrid, Q6KGrid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nf4 import NF4_CODES, NF4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid

GRIDS: dict[str, type[Grid]] = {
    "int": IntegerGrid,
    "nf4": NF4Grid,
    "fp8": FP8Grid,
    "mxfp4": MXFP4Grid,
    "nvfp4": NVFP4Grid,
    "q4_0": Q40Grid,
    "q4_1": Q41Grid,
    "q5_0": Q50Grid,
    "q5_1": Q51Grid,
    "q8_0": Q80Grid,
    "q2_k": Q2KGrid,
    "q3_k": Q3KGrid,
    "q4_k": Q4KGrid,
    "q5_k": Q5KGrid,
    "q6_k": Q6KGrid,
}

__all__ = ["GRIDS", "NF4_CODES", "Grid", "IntegerGrid", "NF4Grid", "Parameters"]
