"""Which weights train, and how: the plan that `structure.guard` carries out, from the config's words."""

from collections.abc import Iterable

from torch import nn

from recoup.config import Train
from recoup.errors import StructureError
from recoup.models.layers import block_linears, blocks
from recoup.models.load import LanguageModel
from recoup.structure.guard import Training
from recoup.structure.trainable import LoRA


def training_plan(model: LanguageModel, config: Train) -> dict[str, Training]:
    """How each weight that trains does so, by parameter name.

    - `weights`: every weight; of the chosen blocks only, where `layers` names some.
    - `lora`: every linear layer of the blocks gets a low-rank update.
    - `scales`: the scales of every weight on a grid.
    - `norms`: vectors, that is, norms and biases.

    Raises:
        StructureError: a block that the model does not have, or nothing is left to train.
    """
    inside = _inside(model, config.layers)
    names = [name for name, weight in model.model.named_parameters() if inside is None or id(weight) in inside]
    plan = _kinds(model, config, names)
    if not plan:
        raise StructureError(f"{model.name}: nothing to train with train.what {config.what!r}; use weights or lora")
    return plan


def lora_of(config: Train, seed: int) -> LoRA:
    """The low-rank settings of a config."""
    return LoRA(config.lora_rank, seed=seed)


def _kinds(model: LanguageModel, config: Train, names: Iterable[str]) -> dict[str, Training]:
    if config.what == "lora":
        linears = {f"{name}.weight" for name in block_linears(model.model)}
        return {name: "lora" for name in names if name in linears}
    if config.what == "scales":
        constraints = model.structure.constraints
        return {name: "scales" for name in names if name in constraints and constraints[name].grid is not None}
    if config.what == "norms":
        return {name: "weights" for name in names if model.model.get_parameter(name).ndim == 1}
    return dict.fromkeys(names, "weights")


def _inside(model: LanguageModel, layers: tuple[int, ...] | None) -> set[int] | None:
    """Identities of the parameters of the chosen blocks; null: all of the model's."""
    if layers is None:
        return None
    every: nn.ModuleList = blocks(model.model)
    missing = [layer for layer in layers if layer >= len(every)]
    if missing:
        raise StructureError(f"train.layers names block {missing[0]}; {model.name} has blocks 0 to {len(every) - 1}")
    return {id(weight) for layer in layers for weight in every[layer].parameters()}
