"""What the blocks of a model put out, and their attention and feed-forward parts, by forward hooks.

Blocks need no architecture's names. Parts are those that `layers` can tell apart: what the attention's output projection and
the feed-forward part's last layer put out, and what each query head hands to the output projection. Norms that some
architectures put between a part and the residual stream (Gemma) are not among them.

Shapes: B rollouts, T padded tokens, D width, H heads (1 for a whole part), d width of a head or part.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.errors import StructureError
from recoup.models.layers import attentions, blocks, feed_forwards, head_counts
from recoup.models.sample import Rollouts, position_ids

Part = tuple[Literal["attention", "ffn", "heads"], int]  # which part of which block
Found = TypeVar("Found")


@contextmanager
def block_outputs(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Yield a dict that every forward pass inside the `with` fills anew: block index → hidden states (B, T, D).

    Raises:
        StructureError: the model has no blocks that can be found.
    """
    outputs: dict[int, Tensor] = {}
    hooks = [block.register_forward_hook(partial(_keep, outputs, index)) for index, block in enumerate(blocks(model))]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def part_outputs(model: PreTrainedModel) -> Iterator[dict[Part, Tensor]]:
    """Yield a dict that every forward pass inside the `with` fills anew: part of a block → what it puts out (B·T, H, d).

    A kind of part that cannot be told apart in this architecture (see `layers`) is left out.
    """
    outputs: dict[Part, Tensor] = {}
    with ExitStack() as hooks:
        for attention in _found(attentions, model):
            projection = model.get_submodule(attention.output)
            keep = partial(_keep_attention, outputs, attention.block, head_counts(model).query)
            hooks.callback(projection.register_forward_hook(keep).remove)
        for part in _found(feed_forwards, model):
            keep = partial(_keep_ffn, outputs, part.block)
            hooks.callback(model.get_submodule(part.down).register_forward_hook(keep).remove)
        yield outputs


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, rollouts: Rollouts) -> tuple[Float[Tensor, "B T D"], ...]:
    """Hidden states after each block, prompts and completions, at every position (pads hold garbage).

    Raises:
        StructureError: as for `block_outputs`.
    """
    with block_outputs(model) as outputs:
        run_backbone(model, rollouts)
    return tuple(outputs[index] for index in range(len(outputs)))


@torch.inference_mode()
def states_and_parts(
    model: PreTrainedModel, rollouts: Rollouts
) -> tuple[tuple[Float[Tensor, "B T D"], ...], dict[Part, Float[Tensor, "BT H d"]]]:
    """`hidden_states`, and of the same forward pass what `part_outputs` describes, at every position.

    Raises:
        StructureError: as for `block_outputs`.
    """
    with part_outputs(model) as parts:
        return hidden_states(model, rollouts), parts


def run_backbone(model: PreTrainedModel, rollouts: Rollouts) -> None:
    """An ordinary forward pass of the backbone over prompts and completions, for the hooks that listen to it."""
    model.base_model(
        rollouts.tokens_BT,
        attention_mask=rollouts.attention_BT.long(),
        position_ids=position_ids(rollouts.attention_BT),
        use_cache=False,
    )


def _keep(outputs: dict[int, Tensor], index: int, _block: nn.Module, _inputs: Any, output: Any) -> None:
    """Some architectures put out the hidden states, some a tuple that begins with them."""
    outputs[index] = output[0] if isinstance(output, tuple) else output


def _keep_attention(
    outputs: dict[Part, Tensor],
    index: int,
    heads: int,
    _projection: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    outputs["attention", index] = _tokens(output, 1)
    outputs["heads", index] = _tokens(inputs[0], heads)


def _keep_ffn(outputs: dict[Part, Tensor], index: int, _down: nn.Module, _inputs: Any, output: Tensor) -> None:
    outputs["ffn", index] = _tokens(output, 1)


def _tokens(output: Tensor, heads: int) -> Tensor:
    """Tokens first: some architectures hand their linear layers batches, some a list of tokens."""
    return output.reshape(-1, heads, output.shape[-1] // heads)


def _found(find: Callable[[PreTrainedModel], tuple[Found, ...]], model: PreTrainedModel) -> tuple[Found, ...]:
    try:
        return find(model)
    except StructureError:
        return ()
