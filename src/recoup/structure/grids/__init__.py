"""Quantization grids: the values a weight may take, a format (or a family of formats) a file.

Adding one: a frozen dataclass in a file here, a line in `GRIDS`, a test.
"""

from recoup.structure.grids.base import Grid, Parameters
from recoup.structure.grids.integer import IntegerGrid
from recoup.structure.grids.nf4 import NF4_CODES, NF4Grid

GRIDS: dict[str, type[Grid]] = {"int": IntegerGrid, "nf4": NF4Grid}

__all__ = ["GRIDS", "NF4_CODES", "Grid", "IntegerGrid", "NF4Grid", "Parameters"]
