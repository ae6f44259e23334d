"""The hidden states that predict completion tokens, and the head as a formula: logits are never laid out in full.

The model's own forward pass runs; a hook takes what would enter the output head and leaves the head nothing to do.

Shapes: B rollouts, T padded tokens, N completion tokens (row by row, as `tokens_BT[completion_BT]`), D width, V vocabulary.
"""

from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.divergence import Head
from recoup.errors import SourceError
from recoup.models.logits import output_head
from recoup.models.sample import Rollouts, position_ids

PROBE_TOKENS = 8
PROBE_TOLERANCE = 0.02  # of the largest logit: bf16 keeps 8 bits


def completion_hidden(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "N D"]:
    """What enters the output head at the position before each completion token. Differentiable.

    Row i belongs to `completion_tokens(rollouts)[i]`, of rollout `completion_rows(rollouts)[i]`.

    Raises:
        SourceError: the model has no output head.
    """
    assert not rollouts.completion_BT[:, 0].any(), "a completion needs a prompt"
    predicts_BT = rollouts.completion_BT[:, 1:]  # position t predicts token t + 1
    taken: list[Tensor] = []

    def take(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        taken.append(inputs[0][predicts_BT])
        return (inputs[0][:, :0],)

    attention_BT = rollouts.attention_BT[:, :-1]
    with ExitStack() as hooks:
        hooks.callback(output_head(model).register_forward_pre_hook(take).remove)
        model(
            rollouts.tokens_BT[:, :-1],
            attention_mask=attention_BT.long(),
            position_ids=position_ids(attention_BT),
            use_cache=False,
        )
    return taken[0]


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """The output head as a formula; its weight is the model's own parameter.

    The soft cap is the config's; any factor around the head is read off the model's own logits, and the formula is checked
    against them.

    Raises:
        SourceError: the model has no output head, or its logits are another function of what the head puts out.
    """
    module = output_head(model)
    raw: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.callback(module.register_forward_hook(lambda _head, _inputs, output: raw.append(output)).remove)
        tokens_1T = torch.arange(1, PROBE_TOKENS + 1, device=model.device)[None]
        logits = model(tokens_1T, use_cache=False).logits.float()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    plain = raw[0].float()
    largest = plain.abs().argmax()
    scale = 1.0 if softcap is not None else float(logits.flatten()[largest] / plain.flatten()[largest])
    scale = 1.0 if abs(scale - 1) < PROBE_TOLERANCE / 2 else scale
    expected = plain * scale if softcap is None else softcap * torch.tanh(plain / softcap)
    if (expected - logits).abs().max() > PROBE_TOLERANCE * logits.abs().max():
        raise SourceError(
            f"{type(model).__name__}: its logits are no known function of its output head; recoup knows a factor and a soft cap"
        )
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor), "a head is a linear layer"
    return Head(weight, bias, scale, softcap)
