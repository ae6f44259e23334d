"""Hidden states that the blocks of a model put out, by forward hooks: no architecture's names are needed.

Shapes: B rollouts, T padded tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.models.layers import blocks
from recoup.models.sample import Rollouts, position_ids


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


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, rollouts: Rollouts) -> tuple[Float[Tensor, "B T D"], ...]:
    """Hidden states after each block, prompts and completions, at every position (pads hold garbage).

    Raises:
        StructureError: as for `block_outputs`.
    """
    with block_outputs(model) as outputs:
        model.base_model(
            rollouts.tokens_BT,
            attention_mask=rollouts.attention_BT.long(),
            position_ids=position_ids(rollouts.attention_BT),
            use_cache=False,
        )
    return tuple(outputs[index] for index in range(len(outputs)))


def _keep(outputs: dict[int, Tensor], index: int, _block: nn.Module, _inputs: Any, output: Any) -> None:
    """Some architectures put out the hidden states, some a tuple that begins with them."""
    outputs[index] = output[0] if isinstance(output, tuple) else output
