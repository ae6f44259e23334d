"""What a calibration walk gathers: sums over the real tokens of what enters linear layers, by forward hooks.

Shapes: B sequences, T padded tokens, N real tokens, I input width of a linear layer.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from recoup.errors import StructureError

Gather = Literal["absolute_sum", "square_sum", "second_moment"]
SUMS: dict[Gather, Callable[[Tensor], Tensor]] = {
    "absolute_sum": lambda hidden_NI: hidden_NI.abs().sum(0),
    "square_sum": lambda hidden_NI: hidden_NI.square().sum(0),
    "second_moment": lambda hidden_NI: hidden_NI.T @ hidden_NI,
}


@dataclass(frozen=True)
class Statistics:
    """Sums over real tokens of what enters a linear layer, float32; null where not asked for.

    Layers that are given the very same tensor (query, key and value; gate and up) share one object.
    """

    num_tokens: int
    absolute_sum_I: Tensor | None = None  # Σ |x|
    square_sum_I: Tensor | None = None  # Σ x²
    second_moment_II: Tensor | None = None  # Σ x xᵀ


class Gatherer:
    """Adds up what enters linear layers, over as many forward passes as it watches."""

    def __init__(self, linears: Mapping[str, nn.Module], gather: Collection[Gather]) -> None:
        self._linears = linears
        self._gather = gather
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._first: dict[str, str] = {}  # of the layers that are given the same tensor
        self._num_tokens = 0

    @contextmanager
    def watching(self, attention_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
        """While open, one forward pass adds its real tokens."""
        last: list[Any] = [None, ""]  # the tensor seen last, and the layer that saw it first

        def add(layer: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0] is not last[0]:
                last[:] = [inputs[0], layer]
                self._add(layer, _real_tokens(layer, inputs[0], attention_BT))
            self._first[layer] = last[1]

        hooks = [linear.register_forward_pre_hook(partial(add, layer)) for layer, linear in self._linears.items()]
        with removing(hooks):
            yield
        self._num_tokens += int(attention_BT.sum())

    def statistics(self) -> dict[str, Statistics]:
        """The sums so far, by layer."""
        missing = next((layer for layer in self._linears if layer not in self._first), None)
        if missing:
            raise StructureError(f"{missing}: this layer was not run on the calibration text; it cannot be calibrated")
        shared = {
            layer: Statistics(
                self._num_tokens, sums.get("absolute_sum"), sums.get("square_sum"), sums.get("second_moment")
            )
            for layer, sums in self._sums.items()
        }
        return {layer: shared[self._first[layer]] for layer in self._linears}

    def _add(self, layer: str, hidden_NI: Tensor) -> None:
        new = layer not in self._sums
        sums = self._sums.setdefault(layer, {})
        with torch.autocast(hidden_NI.device.type, enabled=False):  # whatever the pass is computed in
            for kind in self._gather:
                if new:
                    sums[kind] = SUMS[kind](hidden_NI)
                else:
                    sums[kind] += SUMS[kind](hidden_NI)


def _real_tokens(layer: str, hidden: Tensor, attention_BT: Tensor) -> Float[Tensor, "N I"]:
    if hidden.shape[:-1] != attention_BT.shape:
        raise StructureError(
            f"{layer}: runs on inputs of shape {tuple(hidden.shape)}, not on every token of the batch "
            "(mixture of experts?); it cannot be calibrated"
        )
    return hidden[attention_BT].float()


@contextmanager
def removing(hooks: Sequence[RemovableHandle]) -> Iterator[None]:
    """Removes `hooks` on leaving."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
