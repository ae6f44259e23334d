"""Quantization: every linear layer of the blocks is put on a grid; embeddings, norms and the head stay, unless told otherwise.

`start: round` takes the nearest point of the grid, as NF4 quantization of arXiv 2305.14314 does; `gptq` and `awq` look at
activations on calibration text first. The maths is in `structure.grids`, `gptq` and `awq`. A mask that the model already keeps
stays, so its zeros remain zeros; a grid that it already keeps is replaced. Scales found by `gptq` and `awq`, and those that are
searched (K-quants), stay as they are when the model trains.

Shapes: O output and I input width.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from recoup.config import Quantize
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.degrade.awq import awq
from recoup.degrade.gather import Statistics
from recoup.degrade.gptq import gptq
from recoup.degrade.walk import naming, walk_linears
from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts
from recoup.structure.grids import GRIDS, Grid
from recoup.structure.grids.k_quants import GGUF_GRIDS, gguf_grid
from recoup.structure.spec import Constraint, Structure


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: Quantize, context: Context) -> Structure:
    """Quantize the weights of `model` in place; returns `structure` with the grid on every linear layer of the blocks.

    Raises:
        StructureError: a grid does not fit a layer's inputs, a weight holds NaN or infinity, or the method does not fit the
            architecture.
        DataError: the calibration file is missing or empty.
    """
    names = {f"{layer}.weight": is_transposed(module) for layer, module in block_linears(model.model).items()}
    if config.start == "round":
        after = _round_all(model, structure, names, config, partial(context.progress, "quantize"))
    else:
        rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)
        progress = partial(context.progress, config.start)
        if config.start == "gptq":
            after = _gptq(model, structure, rollouts, config, progress)
        else:
            after = awq(model, structure, rollouts, partial(grid_of, config), progress)
        context.note(f"{config.start} on {sum(int(batch.attention_BT.sum()) for batch in rollouts)} tokens")
    if config.embeddings:
        after = _round_all(model, after, dict.fromkeys(_embeddings(model), False), config, lambda _done, _total: None)
    _note_fallbacks(after, config, context)
    return after


def grid_of(config: Quantize, inputs: int) -> Grid:
    """The grid that a config names, for a layer of so many inputs: llama.cpp's block formats have stand-ins."""
    if config.format in GGUF_GRIDS:
        return gguf_grid(config.format, inputs)
    grid = GRIDS[config.format]
    known = [field.name for field in fields(grid) if hasattr(config, field.name)]  # type: ignore[arg-type]  # a dataclass
    return grid(**{name: getattr(config, name) for name in known})


def _round_all(
    model: LanguageModel,
    structure: Structure,
    names: Mapping[str, bool],
    config: Quantize,
    progress: Callable[[int, int], None],
) -> Structure:
    """Round the weights called `names`, which say whether they lie transposed, to nearest."""
    constraints = dict(structure.constraints)
    for done, (name, transposed) in enumerate(names.items(), start=1):
        weight = model.model.get_parameter(name)
        before = constraints.get(name, Constraint(transposed=transposed)).to(weight.device)
        with naming(name):
            grid = grid_of(config, before.view_OI(weight).shape[1])
            constraints[name] = replace(before, grid=grid, refit=grid.quick_fit).fitted(weight)
        weight.copy_(constraints[name].project(weight))
        progress(done, len(names))
    return replace(structure, constraints=constraints)


def _gptq(
    model: LanguageModel,
    structure: Structure,
    rollouts: Sequence[Rollouts],
    config: Quantize,
    progress: Callable[[int, int], None],
) -> Structure:
    def change(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        assert statistics.second_moment_II is not None, "asked for below"
        grid = grid_of(config, weight_OI.shape[1])
        rounded_OI, parameters = gptq(weight_OI, statistics.second_moment_II, grid, before.mask_OI)
        return rounded_OI, replace(before, grid=grid, parameters=parameters, refit=False)

    return walk_linears(model, structure, rollouts, {"second_moment"}, change, progress)


def _embeddings(model: LanguageModel) -> list[str]:
    """Names of the token embeddings' and the head's weights; tied ones once."""
    wanted = {
        id(part.weight) for part in (model.model.get_input_embeddings(), model.model.get_output_embeddings()) if part
    }
    return [name for name, parameter in model.model.named_parameters() if id(parameter) in wanted]


def _note_fallbacks(structure: Structure, config: Quantize, context: Context) -> None:
    """Say how many matrices took another format than the one asked for, and which."""
    taken = Counter(c.grid.format for c in structure.constraints.values() if c.grid and c.grid.format != config.format)
    for other, count in taken.items():
        context.note(f"{count} weight matrices took {other}, since {config.format} does not fit their inputs")
