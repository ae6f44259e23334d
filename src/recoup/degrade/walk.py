"""One calibration walk that feeds every method: block by block, each seeing what the changed blocks before it put out.

    walk(model, rollouts, {"second_moment"}, change, partial(context.progress, "gptq"))

For every block: run it on the calibration text while the sums that a method asked for are gathered over what enters each of
its linear layers; let the method change the block; run it again, so that the next block is given what it will really see.
This is how GPTQ (2210.17323, section 4) and SparseGPT (2301.00774, section 4) calibrate. Blocks are run as the proof runs
models, in bfloat16 by autocast; sums, and what methods do with them, are float32.

How a block is called (masks, position embeddings, which differ by architecture and by layer type) is recorded on one
ordinary pass of each batch; nothing here knows an architecture's names. Pads never count.

Memory beside the model: the hidden states of all calibration tokens at one boundary (tokens × D floats: 19 MB for 8192 tokens
of width 576), the blocks' other arguments (a mask of B × T × T per batch and layer type, shared by the blocks), and one
block's sums (I² floats per input that linear layers share), all on the model's device.

A method that changes nothing between blocks needs one ordinary pass: `input_statistics`, or `boundaries` for hidden states.

Shapes: B sequences, T padded tokens, N real tokens, D width, I input width of a linear layer.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.degrade.gather import Gather, Gatherer, Statistics, removing
from recoup.errors import StructureError
from recoup.models.capture import block_outputs, run_backbone
from recoup.models.layers import block_linears, blocks, is_transposed
from recoup.models.load import LanguageModel, computing
from recoup.models.sample import Rollouts
from recoup.structure.spec import Constraint, Structure


@dataclass(frozen=True)
class Visit:
    """A block whose turn it is to change."""

    index: int
    block: nn.Module
    statistics: Mapping[str, Statistics]  # by the full name of each of the block's linear layers
    run: Callable[[], Tensor]  # the block, as it is when called, on the first batch: hidden states (N, D)


@torch.no_grad()
def walk(
    model: LanguageModel,
    rollouts: Sequence[Rollouts],
    gather: Collection[Gather],
    change: Callable[[Visit], None],
    progress: Callable[[int, int], None],
) -> None:
    """Visit the blocks in order; `change` may move a block's weights, and later blocks see the effect.

    Args:
        model: what is calibrated, and changed in place.
        rollouts: batches of calibration text, as `calibration_rollouts` gives them.
        gather: which sums to fill in.
        change: called once a block.
        progress: told (blocks done, blocks in all).

    Raises:
        StructureError: the blocks are not a plain chain, or a linear layer is not run on (B, T, I) inputs.
    """
    linears = block_linears(model.model)
    with computing(model):
        starts = [_start(model.model, batch) for batch in rollouts]
    chain = blocks(model.model)
    for index, block in enumerate(chain):
        inside = {id(module) for module in block.modules()}
        gatherer = Gatherer({name: linear for name, linear in linears.items() if id(linear) in inside}, gather)
        for start in starts:
            with gatherer.watching(start.attention_BT), computing(model):
                start.run(index, block)
        change(Visit(index, block, gatherer.statistics(), partial(starts[0].real_tokens, index, block)))
        for start in starts if index + 1 < len(chain) else ():  # nothing follows the last one
            with computing(model):
                start.hidden_BTD = start.run(index, block)
        progress(index + 1, len(chain))


def walk_linears(
    model: LanguageModel,
    structure: Structure,
    rollouts: Sequence[Rollouts],
    gather: Collection[Gather],
    change: Callable[[Tensor, Constraint, Statistics], tuple[Tensor, Constraint]],
    progress: Callable[[int, int], None],
) -> Structure:
    """Walk for a method that changes each linear layer by itself; returns `structure` with the new constraints.

    Args:
        model: what is calibrated, and changed in place.
        structure: what it keeps.
        rollouts: batches of calibration text.
        gather: which sums to fill in.
        change: given a weight (O, I), what it keeps and the sums of its input; returns the new weight and what it keeps.
        progress: told (blocks done, blocks in all).

    Raises:
        StructureError: as `walk`, or from `change`, with the weight's name before it.
    """
    constraints = dict(structure.constraints)

    def change_block(visit: Visit) -> None:
        for layer, statistics in visit.statistics.items():
            module, name = model.model.get_submodule(layer), f"{layer}.weight"
            weight = model.model.get_parameter(name)
            before = constraints.get(name, Constraint(transposed=is_transposed(module))).to(weight.device)
            with naming(name):
                weight_OI, constraints[name] = change(before.view_OI(weight), before, statistics)
            weight.copy_(constraints[name].project(before.view_OI(weight_OI)))

    walk(model, rollouts, gather, change_block, progress)
    return replace(structure, constraints=constraints)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts a weight's name before what is said to be wrong with it."""
    try:
        yield
    except StructureError as error:
        raise StructureError(f"{name}: {error}") from None


@torch.no_grad()
def input_statistics(
    model: LanguageModel,
    layers: Collection[str],
    rollouts: Sequence[Rollouts],
    gather: Collection[Gather],
    progress: Callable[[int, int], None],
) -> dict[str, Statistics]:
    """Sums over what enters each of the linear `layers`, by name, in one ordinary pass of each batch.

    Args:
        model: what is run, unchanged.
        layers: full names of linear layers.
        rollouts: batches of calibration text.
        gather: which sums to fill in.
        progress: told (batches done, batches in all).

    Raises:
        StructureError: a layer is not run, or not on (B, T, I) inputs.
    """
    gatherer = Gatherer({layer: model.model.get_submodule(layer) for layer in layers}, gather)
    for done, batch in enumerate(rollouts, start=1):
        with gatherer.watching(batch.attention_BT):
            run_backbone(model.model, batch)
        progress(done, len(rollouts))
    return gatherer.statistics()


@torch.no_grad()
def boundaries(model: LanguageModel, batch: Rollouts) -> tuple[Float[Tensor, "B T D"], ...]:
    """Hidden states before each block and, last, after the last one; at every position (pads hold garbage).

    Raises:
        StructureError: the blocks are not a plain chain.
    """
    with block_outputs(model.model) as outputs:
        start = _start(model.model, batch)
    return (start.hidden_BTD, *(outputs[index] for index in range(len(outputs))))


# --- how blocks are called ---------------------------------------------------------------------------------------------


@dataclass
class _Start:
    """A batch on its way through the blocks: its hidden states, and what each block is given beside them."""

    attention_BT: Tensor
    hidden_BTD: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def run(self, index: int, block: nn.Module) -> Float[Tensor, "B T D"]:
        """What `block` makes of the hidden states."""
        args, kwargs = self.calls[index]
        return _hidden(block(self.hidden_BTD, *args, **kwargs))

    @torch.no_grad()
    def real_tokens(self, index: int, block: nn.Module) -> Float[Tensor, "N D"]:
        """The same without pads."""
        return self.run(index, block)[self.attention_BT]


def _start(model: PreTrainedModel, batch: Rollouts) -> _Start:
    """One ordinary pass, which records how every block is called."""
    start = _Start(batch.attention_BT, torch.empty(0), [])
    last: list[Any] = [None]  # what the block before put out

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not args or (start.calls and args[0] is not last[0]):
            raise StructureError(
                f"block {len(start.calls)} ({type(block).__name__}) is not given just what the block before it put out; "
                "methods that calibrate block by block do not fit this architecture"
            )
        if not start.calls:
            start.hidden_BTD = args[0]
        start.calls.append((args[1:], kwargs))

    def after(_block: nn.Module, _args: Any, output: Any) -> None:
        last[0] = _hidden(output)

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks(model)]
    hooks += [block.register_forward_hook(after) for block in blocks(model)]
    with removing(hooks):
        run_backbone(model, batch)
    return start


def _hidden(output: Any) -> Tensor:
    """Some blocks put out the hidden states, some a tuple that begins with them."""
    return output[0] if isinstance(output, tuple) else output
