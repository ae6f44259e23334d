"""Degrade: the injuries, one method a file. Importing this imports no torch; a method is imported when it is applied.

A method is a module with one function, `apply(model, structure, config, context) -> Structure`: it damages the loaded
model's weights and returns what the model must keep from then on, composed with what it already had to keep.

Adding one: a file here, a line in `METHODS`, a config class in `config.py`, a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from recoup.progress import Progress

if TYPE_CHECKING:
    from recoup.config import Degrade
    from recoup.models.load import LanguageModel
    from recoup.structure.spec import Structure


@dataclass(frozen=True)
class Context:
    """What a method is given beside the model and its config."""

    seed: int
    progress: Progress
    note: Callable[[str], None]  # one line of what was done, for the result's summary


@dataclass(frozen=True)
class Method:
    """An injury: the module that holds its `apply`, and one line for people."""

    module: str
    description: str

    def apply(self, model: LanguageModel, structure: Structure, config: Degrade, context: Context) -> Structure:
        """Damage `model` in place; returns the structure it keeps from now on."""
        damaged: Structure = import_module(self.module).apply(model, structure, config, context)
        return damaged


METHODS: dict[str, Method] = {
    "sft": Method("recoup.degrade.finetune", "Fine-tune on a narrow task: the rest is forgotten."),
    "quantize": Method(
        "recoup.degrade.quantize", "Put every linear layer of the blocks on a grid: round, GPTQ or AWQ."
    ),
    "magnitude": Method("recoup.degrade.magnitude", "Set the smallest weights of every linear layer to zero."),
    "wanda": Method("recoup.degrade.wanda", "Set the weights that matter least to each output to zero."),
    "sparsegpt": Method("recoup.degrade.sparsegpt", "Set weights to zero and update the others to make up for them."),
    "ffn_width": Method("recoup.degrade.ffn_width", "Remove the feed-forward neurons that matter least."),
    "attention_heads": Method("recoup.degrade.attention_heads", "Remove the attention heads that matter least."),
    "depth": Method("recoup.degrade.depth", "Remove whole blocks: those that change hidden states least."),
}


def describe_injuries() -> dict[str, str]:
    """One line per method, by the `type` a config names it with."""
    return {name: method.description for name, method in METHODS.items()}
