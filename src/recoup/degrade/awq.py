"""AWQ: inputs that carry large activations are scaled up in the weights before rounding, so that they lose less (2306.00978).

Linear layers that share an input x get one scale s per input channel: W · diag(s) is rounded, and 1/s is folded into what makes
x, so the unrounded block computes what it did. s = mean|x|^alpha, normalised to √(max s · min s) = 1 (section 3.2, eq. 4, and the
authors' code, `awq/quantize/auto_scale.py`); alpha is searched over 0, 0.05, …, 0.95 for the least error of the layers' outputs,
Σ ‖(Ŵ − W) x‖², which needs only Σ x xᵀ. The authors measure the error behind the whole attention or feed-forward part instead,
and search for clipping afterwards; we do neither.

Where 1/s can be folded is found by trying, on the first block, with no names: into a norm's weight w (or 1 + w, as Gemma's), or
into the rows of a linear layer (up for down; value for output where heads are not grouped). What leaves the block's output
unchanged is a fold; layers without one are rounded as they are. Every block is checked again after its folds.

Shapes: N tokens, D width, O output and I input width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recoup.degrade.cut import weight_OI
from recoup.degrade.gather import Statistics
from recoup.degrade.walk import Visit, naming, walk
from recoup.errors import StructureError
from recoup.models.layers import is_linear, is_transposed
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts
from recoup.structure.grids import Grid
from recoup.structure.spec import Constraint, Structure

NUM_ALPHAS = 20  # the authors' grid
SMALLEST_SCALE = 1e-4  # before normalising, as in the authors' code
TOLERANCE = 1e-4  # of a token's norm: float32 leaves 1e-6, a wrong fold 1e-2
PROBE = (0.5, 2.0)  # range of the random scales that folds are tried with


@dataclass(frozen=True)
class Fold:
    """Where the scales of linear layers that share an input can be taken back; names within a block."""

    linears: tuple[str, ...]
    source: str
    kind: Literal["norm", "norm_plus_one", "rows"]


def awq(
    model: LanguageModel,
    structure: Structure,
    rollouts: Sequence[Rollouts],
    grid_of: Callable[[int], Grid],
    progress: Callable[[int, int], None],
) -> Structure:
    """Scale and round every linear layer of the blocks, in place; returns `structure` with their grids.

    Args:
        model: what is quantized.
        structure: what it keeps: masks stay, grids are replaced.
        rollouts: batches of calibration text.
        grid_of: the grid for a layer of so many inputs.
        progress: told (blocks done, blocks in all).

    Raises:
        StructureError: no scale can be folded, or folding changes what a block computes.
    """
    constraints = dict(structure.constraints)
    folds: list[Fold] = []

    def change(visit: Visit) -> None:
        layers = {name: (f"{layer}.weight", visit.statistics[layer]) for layer, name in _names(model, visit).items()}
        if visit.index == 0:
            folds.extend(find_folds(visit, [group for group, _ in _groups(layers)]))
        ready = {}
        for name, (weight, _) in layers.items():
            before = constraints.get(weight, Constraint(transposed=is_transposed(visit.block.get_submodule(name))))
            inputs = before.view_OI(model.model.get_parameter(weight)).shape[1]
            ready[name] = replace(before, grid=grid_of(inputs), refit=False).to(model.device)
        _fold_all(visit, folds, layers, ready)
        for name, (weight, _) in layers.items():
            parameter = model.model.get_parameter(weight)
            with naming(weight):
                constraints[weight] = ready[name].fitted(parameter)
            parameter.copy_(constraints[weight].project(parameter))

    walk(model, rollouts, {"absolute_sum", "second_moment"}, change, progress)
    return replace(structure, constraints=constraints)


# --- the maths ---------------------------------------------------------------------------------------------------------


def awq_scale(mean_I: Float[Tensor, " I"], alpha: float) -> Float[Tensor, " I"]:
    """mean|x|^alpha, normalised so that √(max · min) = 1."""
    scale_I = mean_I.pow(alpha).clamp_min(SMALLEST_SCALE)
    return scale_I / (scale_I.max() * scale_I.min()).sqrt()


def output_error(difference_OI: Float[Tensor, "O I"], second_moment_II: Float[Tensor, "I I"]) -> float:
    """Σ ‖Δ x‖² over the tokens of Σ x xᵀ: the trace of Δ (Σ x xᵀ) Δᵀ."""
    return float(((difference_OI @ second_moment_II) * difference_OI).sum())


def best_scale(
    weights_OI: Sequence[Float[Tensor, "O I"]],
    rounded: Sequence[Callable[[Tensor], Tensor]],
    statistics: Statistics,
) -> Float[Tensor, " I"]:
    """The scale whose alpha leaves the least output error, summed over the layers; of equal ones the smallest alpha.

    Args:
        weights_OI: of the layers that share an input.
        rounded: how each is rounded to its grid.
        statistics: of that input, absolute sums and second moments.
    """
    assert statistics.absolute_sum_I is not None, "asked for by awq"
    assert statistics.second_moment_II is not None, "asked for by awq"
    mean_I = statistics.absolute_sum_I / statistics.num_tokens
    scales = [awq_scale(mean_I, step / NUM_ALPHAS) for step in range(NUM_ALPHAS)]
    errors = [
        sum(
            output_error(to_grid(weight_OI * scale_I) / scale_I - weight_OI, statistics.second_moment_II)
            for weight_OI, to_grid in zip(weights_OI, rounded, strict=True)
        )
        for scale_I in scales
    ]
    return scales[errors.index(min(errors))]


# --- the folds ---------------------------------------------------------------------------------------------------------


def find_folds(visit: Visit, groups: Sequence[tuple[str, ...]]) -> list[Fold]:
    """A fold for each group of layers that share an input, where there is one.

    Raises:
        StructureError: there is none at all.
    """
    folds = [fold for group in groups if (fold := _first_that_holds(visit, group))]
    if not folds:
        raise StructureError(
            f"awq does not fit this architecture: {type(visit.block).__name__} has no norm or linear layer to fold scales into; "
            "use start: gptq"
        )
    return folds


def apply_fold(block: nn.Module, fold: Fold, scale_I: Float[Tensor, " I"]) -> None:
    """Multiply the layers' input columns by `scale_I` and divide what makes their input by it, in place."""
    for name in fold.linears:
        weight_OI(block, name).mul_(scale_I)
    source = block.get_submodule(fold.source)
    weight: Tensor = source.weight  # type: ignore[assignment]
    if fold.kind == "norm_plus_one":
        weight.add_(1).div_(scale_I).sub_(1)
    elif fold.kind == "norm":
        weight.div_(scale_I)
    else:
        weight_OI(block, fold.source).div_(scale_I[:, None])
    if getattr(source, "bias", None) is not None:
        source.bias.div_(scale_I)  # type: ignore[operator]


def _first_that_holds(visit: Visit, group: tuple[str, ...]) -> Fold | None:
    before_ND = visit.run()
    inputs = weight_OI(visit.block, group[0]).shape[1]
    generator = torch.Generator().manual_seed(0)
    scale_I = torch.empty(inputs).uniform_(*PROBE, generator=generator).to(before_ND.device)
    stored = {key: value.clone() for key, value in visit.block.state_dict().items()}
    for fold in _candidates(visit.block, group, inputs):
        apply_fold(visit.block, fold, scale_I)
        holds = _same(visit.run(), before_ND)
        visit.block.load_state_dict(stored)
        if holds:
            return fold
    return None


def _candidates(block: nn.Module, group: tuple[str, ...], inputs: int) -> Iterator[Fold]:
    """Whatever could make inputs of that width: norms first."""
    modules = [(name, m) for name, m in block.named_modules() if isinstance(getattr(m, "weight", None), Tensor)]
    for name, module in modules:
        if module.weight.shape == (inputs,):
            yield Fold(group, name, "norm")
            yield Fold(group, name, "norm_plus_one")
    for name, module in modules:
        if is_linear(module) and name not in group and weight_OI(block, name).shape[0] == inputs:
            yield Fold(group, name, "rows")


def _fold_all(
    visit: Visit,
    folds: Sequence[Fold],
    layers: Mapping[str, tuple[str, Statistics]],
    ready: Mapping[str, Constraint],
) -> None:
    """Search and fold the scales of a block, and check that it still computes what it did."""
    before_ND = visit.run()
    for fold in folds:
        weights_OI = [weight_OI(visit.block, name) for name in fold.linears]
        rounded = [_to_grid(ready[name]) for name in fold.linears]
        apply_fold(visit.block, fold, best_scale(weights_OI, rounded, layers[fold.linears[0]][1]))
    if not _same(visit.run(), before_ND):
        raise StructureError(
            f"awq does not fit this architecture: block {visit.index} changes when scales are folded; use start: gptq"
        )


def _to_grid(constraint: Constraint) -> Callable[[Tensor], Tensor]:
    """Rounding of a weight that is laid out output × input."""
    upright = replace(constraint, transposed=False)
    return lambda weight_OI: upright.fitted(weight_OI).project(weight_OI)


def _names(model: LanguageModel, visit: Visit) -> dict[str, str]:
    """Each linear layer's name within its block, by its full name."""
    within = {id(module): name for name, module in visit.block.named_modules()}
    return {layer: within[id(model.model.get_submodule(layer))] for layer in visit.statistics}


def _groups(layers: Mapping[str, tuple[str, Statistics]]) -> list[tuple[tuple[str, ...], Statistics]]:
    """Layers that share an input, by the sums that they share."""
    shared: dict[int, list[str]] = {}
    for name, (_, statistics) in layers.items():
        shared.setdefault(id(statistics), []).append(name)
    return [(tuple(names), layers[names[0]][1]) for names in shared.values()]


def _same(after_ND: Tensor, before_ND: Tensor) -> bool:
    return bool(((after_ND - before_ND).norm(dim=-1) <= TOLERANCE * before_ND.norm(dim=-1)).all())
