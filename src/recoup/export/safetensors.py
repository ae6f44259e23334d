"""A plain transformers folder: every weight in one floating-point type, with the structure it keeps beside it.

float32 holds every grid's values exactly. 16 bits do not: a value is a code times a scale, whose significant bits add up (3 of
an int4 code and 11 of a float16 scale make 14; float16 holds 11, bfloat16 8). A weight that is rounded so leaves its grid, which
is then no longer declared, and a note says so; a mask's zeros stay zeros in every type.
"""

from dataclasses import replace
from pathlib import Path

import torch

from recoup.config import Export
from recoup.export.target import DTYPES, Written, count_types
from recoup.models.load import LanguageModel
from recoup.models.save import write_folder
from recoup.structure.spec import Constraint, Structure

ROUNDED = "{count} weights are rounded: {dtype} does not hold their grids, which are no longer declared; float32 does"


def write_safetensors(model: LanguageModel, config: Export, folder: Path) -> Written:
    """Write weights, configs, tokenizer and structure into `folder`; the model's weights change to the type asked for.

    Args:
        model: what to write.
        config: its `dtype` is the type of every weight; null: float32.
        folder: exists.
    """
    dtype = DTYPES[config.dtype or "float32"]
    kept = _held(model, dtype)
    model.model.to(dtype)
    write_folder(model, kept, folder)
    types = count_types(parameter for parameter in model.model.parameters())
    num_rounded = sum(c.grid is not None for c in model.structure.constraints.values())
    num_rounded -= sum(c.grid is not None for c in kept.constraints.values())
    return Written(dict(types), (ROUNDED.format(count=num_rounded, dtype=config.dtype),) if num_rounded else ())


def _held(model: LanguageModel, dtype: torch.dtype) -> Structure:
    """What weights still keep once they are rounded to `dtype`: masks always, a grid where no value changes."""
    kept: dict[str, Constraint] = {}
    for name, constraint in model.structure.constraints.items():
        weight = model.model.get_parameter(name)
        if constraint.grid is None or torch.equal(weight.to(dtype).float(), weight):
            kept[name] = constraint
        elif constraint.mask_OI is not None:
            kept[name] = replace(constraint, grid=None, parameters={})
    return Structure(kept, model.structure.shapes)
