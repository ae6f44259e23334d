"""Logits that predict completion tokens, and nothing else: the head runs at those positions only.

The model's own forward pass runs, with a hook that narrows what enters the output head. So whatever an architecture does
around its head (soft caps, logit scales, multipliers) is kept, wrappers that need the forward pass work, and gradients flow.

Shapes: B rollouts, T padded tokens, N completion tokens (row by row, as `tokens_BT[completion_BT]`), D width, V vocabulary.
"""

from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.errors import SourceError
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts, position_ids


def completion_logits(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "N V"]:
    """Logits that predict each completion token, taken at the position before it, in the type the model computes in.

    Differentiable. Row i belongs to `completion_tokens(rollouts)[i]`, of rollout `completion_rows(rollouts)[i]`.

    Raises:
        SourceError: the model has no output head.
    """
    assert not rollouts.completion_BT[:, 0].any(), "a completion needs a prompt"
    predicts_BT = rollouts.completion_BT[:, 1:]  # position t predicts token t + 1

    def narrow(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][predicts_BT][None],)

    attention_BT = rollouts.attention_BT[:, :-1]
    hook = output_head(model).register_forward_pre_hook(narrow)
    try:
        output = model(
            rollouts.tokens_BT[:, :-1],
            attention_mask=attention_BT.long(),
            position_ids=position_ids(attention_BT),
            use_cache=False,
        )
    finally:
        hook.remove()
    return output.logits[0]


def completion_tokens(rollouts: Rollouts) -> Int[Tensor, " N"]:
    """The completion tokens, row by row."""
    return rollouts.tokens_BT[rollouts.completion_BT]


def completion_rows(rollouts: Rollouts) -> Int[Tensor, " N"]:
    """The rollout that each completion token belongs to."""
    return rollouts.completion_BT.nonzero()[:, 0]


def batches(rollouts: Rollouts, batch_size: int) -> Iterator[Rollouts]:
    """Rollouts, `batch_size` at a time, in order, without the columns that are pads in the whole batch."""
    for start in range(0, len(rollouts.tokens_BT), batch_size):
        yield rows_of(rollouts, slice(start, start + batch_size))


def rows_of(rollouts: Rollouts, rows: slice) -> Rollouts:
    """Some of the rollouts, without the columns that are pads in all of them."""
    used_T = rollouts.attention_BT[rows].any(0)
    logp_BT = rollouts.logp_BT
    return Rollouts(
        rollouts.tokens_BT[rows, used_T],
        rollouts.attention_BT[rows, used_T],
        rollouts.completion_BT[rows, used_T],
        None if logp_BT is None else logp_BT[rows, used_T],
    )


def output_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into logits.

    Raises:
        SourceError: there is none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise SourceError(f"{type(model).__name__}: has no output head; recoup needs a causal language model")
    return head


def shared_vocabulary(a: LanguageModel, b: LanguageModel) -> int:
    """Number of leading logits that mean the same token in both models: heads may be padded to different sizes.

    Raises:
        SourceError: a token has one id in `a` and another in `b`.
    """
    ids_a, ids_b = a.tokenizer.get_vocab(), b.tokenizer.get_vocab()
    tokens_b = {id_: token for token, id_ in ids_b.items()}
    for token, id_ in ids_a.items():
        if ids_b.get(token, id_) != id_ or tokens_b.get(id_, token) != token:
            raise SourceError(f"{a.name} and {b.name}: their tokenizers disagree about token {token!r} (id {id_})")
    return min(_head_width(a.model), _head_width(b.model))


def _head_width(model: PreTrainedModel) -> int:
    weight: Tensor = output_head(model).weight  # type: ignore[assignment]
    return len(weight)
