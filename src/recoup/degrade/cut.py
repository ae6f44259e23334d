"""What every method that removes parts of a model needs: choosing, cutting weights with their masks, rewriting the config.

A cut must load again as an ordinary model. `blueprint` builds, without memory for weights, the model that the rewritten config
describes, and `conform` holds the cut model against it: parameters must have the same names and shapes, and plain attributes
that the constructor derives (a linear layer's width, the number of heads, a block's index) are taken over. So what is
in memory is what a reload gives, for any architecture, and one that cannot express the cut is refused.

Shapes: O output and I input width, K kept units.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.errors import StructureError
from recoup.models.layers import is_transposed
from recoup.structure.infer import keeps_pattern
from recoup.structure.spec import Constraint, Structure

TORN = "cannot be cut; prune before you quantize"  # a cut would tear the groups of a grid apart
PLAIN = (bool, int, float, str, type(None))  # what a constructor derives from the config and writes on its modules


# --- choosing ----------------------------------------------------------------------------------------------------------


def kept_count(total: int, fraction: float, units: str) -> int:
    """K = total − round(total · fraction).

    Raises:
        StructureError: nothing would be left, or nothing removed.
    """
    count = total - round(total * fraction)
    if not count:
        raise StructureError(f"fraction {fraction} removes all {total} {units}; lower it")
    if count == total:
        raise StructureError(f"fraction {fraction} removes none of {total} {units}; raise it")
    return count


def most_important(importance_U: Float[Tensor, " U"], count: int) -> Int[Tensor, " K"]:
    """Indices of the `count` largest, ascending; of equal ones the first."""
    return torch.argsort(importance_U, descending=True, stable=True)[:count].sort().values


# --- cutting -----------------------------------------------------------------------------------------------------------


def weight_OI(model: nn.Module, layer: str) -> Tensor:
    """The weight of a linear layer as output × input."""
    transposed = is_transposed(model.get_submodule(layer))
    return Constraint(transposed=transposed).view_OI(model.get_parameter(f"{layer}.weight"))


def cut_layer(
    model: nn.Module, layer: str, kept_K: Int[Tensor, " K"], axis_OI: int, constraints: dict[str, Constraint]
) -> None:
    """Keep `kept_K` of a linear layer's outputs (axis 0, with the bias) or inputs (axis 1), and of its mask in `constraints`."""
    module = model.get_submodule(layer)
    axis = 1 - axis_OI if is_transposed(module) else axis_OI
    module.weight = _selected(module.weight, axis, kept_K)  # type: ignore[arg-type]
    if axis_OI == 0 and module.bias is not None:
        module.bias = _selected(module.bias, 0, kept_K)  # type: ignore[arg-type]
    constraint = constraints.get(f"{layer}.weight")
    if constraint is not None and constraint.mask_OI is not None:
        mask_OI = constraint.mask_OI.index_select(axis_OI, kept_K.to(constraint.mask_OI.device))
        holds = constraint.pattern is not None and keeps_pattern(mask_OI, constraint.pattern)
        pattern = constraint.pattern if holds else None  # removed inputs shift the groups of M
        constraints[f"{layer}.weight"] = replace(constraint, mask_OI=mask_OI, pattern=pattern)


def refuse_grids(layers: Iterable[str], structure: Structure, why: str = TORN) -> None:
    """Refuse weights on a grid; `why` says what the method would do to them, and how to go about it.

    Raises:
        StructureError: one of `layers` lies on a grid.
    """
    for layer in layers:
        constraint = structure.constraints.get(f"{layer}.weight")
        if constraint is not None and constraint.grid is not None:
            raise StructureError(f"{layer}.weight lies on a grid ({constraint.grid.describe()}), which {why}")


# --- the config --------------------------------------------------------------------------------------------------------


def blueprint(model: PreTrainedModel, changes: Mapping[str, object]) -> PreTrainedModel:
    """The model that a reload builds once the config has `changes`, without weights (on the meta device).

    Raises:
        StructureError: the architecture refuses such a config.
    """
    config = deepcopy(model.config)
    words = ", ".join(f"{field} = {value}" for field, value in changes.items() if not isinstance(value, list))
    for field, value in changes.items():
        setattr(config, field, value)
    try:
        with torch.device("meta"):
            return type(model)(type(config).from_dict(config.to_dict()))
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise StructureError(f"{type(model).__name__} cannot have {words} ({reason}); choose another number") from None


def conform(model: PreTrainedModel, plan: PreTrainedModel, changes: Mapping[str, object]) -> None:
    """Rewrite the config of the cut `model` and the attributes that follow from it, as `plan` (a `blueprint`) has them.

    Raises:
        StructureError: a parameter is not what a reload would expect.
    """
    expected = {name: parameter.shape for name, parameter in plan.named_parameters()}
    found = {name: parameter.shape for name, parameter in model.named_parameters()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise StructureError(
            f"{differing[0]}: {type(model).__name__} cannot express this cut in its config (it expects shape "
            f"{_words(expected.get(differing[0]))}, the cut has {_words(found.get(differing[0]))}); use another method"
        )
    modules = dict(model.named_modules())
    for name, module in plan.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, PLAIN) and not key.startswith("_") and key != "training":
                setattr(modules[name], key, value)
    for field, value in changes.items():
        setattr(model.config, field, value)


def noted(structure: Structure, changes: Mapping[str, tuple[int, int]]) -> dict[str, Mapping[str, int]]:
    """The structure's shapes with `changes` (config field → before, after) added; the first `before` stays."""
    shapes = dict(structure.shapes)
    for field, (before, after) in changes.items():
        shapes[field] = {"before": shapes.get(field, {}).get("before", before), "after": after}
    return shapes


def _selected(parameter: nn.Parameter, axis: int, kept_K: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.index_select(axis, kept_K), requires_grad=parameter.requires_grad)


def _words(shape: torch.Size | None) -> str:
    return "no such parameter" if shape is None else " × ".join(map(str, shape))
