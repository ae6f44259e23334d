"""The term on hidden states beside the divergence: student against teacher, block by block, on the same tokens (2606.05682).

- `cka`: 1 − debiased linear CKA of centred features. CKA (1905.00414, section 3) ignores rotation, shift and isotropic scale, and
  widths may differ.
- `relative_l2`: ‖h_S − h_T‖² / ‖h_T‖² of each token.

Which CKA: a micro-batch holds few tokens for its width, and the biased estimator then sees mostly the tokens' norms. Measured
on synthetic features of width 96 whose true 1 − CKA is 0.030, against the gradient of 16,384 tokens:

    tokens in a mini-batch        8              32             128            512
    biased    loss | |mean grad|  0.008 | 0.33   0.019 | 0.64   0.024 | 0.81   0.028 | 0.94
    debiased  loss | |mean grad|  0.037 | 1.29   0.032 | 1.03   0.030 | 0.98   0.030 | 1.00

(gradient norms as shares of the whole sample's). So the debiased one (HSIC_1, Song et al. 2012) is used: its loss does not move
with the micro-batch size. Its single gradients at 8 tokens are 6 times the whole's, hence no term below `MIN_TOKENS`.
Early blocks are noisy whatever the estimator: in SmolLM2-135M's blocks 3 and 7 half of the variance is one dimension at a few
tokens, and with 64 tokens a damaged model's CKA there read 0.90 to 0.92, with 549 tokens 0.99.

The term counts as a fixed weight says, or in proportion to the divergence (`balance.Ratio`).

States are taken where completion tokens are predicted, as `completion_hidden` takes them: the last token's own states predict
nothing and are never worked out. The first token of a sequence, an attention sink, is among them only after a prompt of one
token.

Shapes: B rollouts, T padded tokens, N completion tokens, D student width, E teacher width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.errors import ConfigError
from recoup.models.layers import blocks
from recoup.models.sample import Rollouts

Measure = Literal["cka", "relative_l2"]
EVERY = 4  # blocks
MIN_TOKENS = 32
RESOLUTION = torch.finfo(torch.float32).eps
ROUNDING = 16 * RESOLUTION  # features that vary by less than this share of their size are constant: a mean's rounding


def chosen_layers(layers: Sequence[int] | None, num_blocks: int) -> tuple[int, ...]:
    """The student's blocks that are compared, counted from 0: those named, or every fourth and the last.

    Raises:
        ConfigError: there is no such block.
    """
    if layers is None:
        return tuple(sorted({*range(EVERY - 1, num_blocks, EVERY), num_blocks - 1}))
    if max(layers) >= num_blocks:
        raise ConfigError(
            f"recover.hidden_states.layers: no block {max(layers)}; the student has blocks 0 to {num_blocks - 1}"
        )
    return tuple(sorted(set(layers)))


@contextmanager
def completion_states(
    model: PreTrainedModel, layers: Sequence[int], rollouts: Rollouts
) -> Iterator[dict[int, Float[Tensor, "N D"]]]:
    """Yield a dict that every forward pass on `rollouts` inside the `with` fills anew: block → states (N, D).

    The pass must be over all but the last column of `rollouts`, as in `completion_hidden`; rows stand as its rows do. States are
    part of the graph where one is recorded. Leave the `with` before the backward pass.

    Args:
        model: student or teacher.
        layers: blocks, counted from 0.
        rollouts: what the forward pass is over.

    Raises:
        StructureError: the model has no blocks that can be found.
    """
    predicts_BT = rollouts.completion_BT[:, 1:]
    all_blocks = blocks(model)
    whole: dict[int, Tensor] = {}
    states: dict[int, Tensor] = {}

    def keep(index: int, _block: nn.Module, _inputs: Any, output: Any) -> None:
        # no operation here: gradient checkpointing would count it, and miss it when it works the block out again
        whole[index] = output[0] if isinstance(output, tuple) else output

    def choose(_backbone: nn.Module, _inputs: Any, _output: Any) -> None:
        states.update({index: whole.pop(index)[predicts_BT] for index in layers})

    with ExitStack() as hooks:
        for index in layers:
            hooks.callback(all_blocks[index].register_forward_hook(partial(keep, index)).remove)
        hooks.callback(model.base_model.register_forward_hook(choose).remove)
        yield states


def hidden_term(
    measure: Measure, student: Sequence[Tensor], teacher: Sequence[Tensor], weights_N: Float[Tensor, " N"]
) -> Float[Tensor, ""] | None:
    """A micro-batch's share of the step's hidden-state term, averaged over the layers; differentiable to the student.

    Shares of micro-batches add up to the step's term. That of `relative_l2` is the same however the batch is cut; CKA is one
    of each micro-batch's own tokens, weighed by their weights' sum.

    Args:
        measure: how two layers are compared.
        student: states (N, D) of each layer compared.
        teacher: states (N, E) of its partner, in the same order; no gradient reaches them.
        weights_N: of the tokens in the step's loss (`schedule.step_weights`); tokens of weight 0 are left out.

    Returns:
        Null where `cka` has fewer than 32 tokens to go by.

    Raises:
        ConfigError: `relative_l2` of states of different widths.
    """
    counts_N = weights_N > 0
    weights_N = weights_N[counts_N]
    if measure == "cka" and len(weights_N) < MIN_TOKENS:
        return None
    pairs = [(own[counts_N], other[counts_N].detach()) for own, other in zip(student, teacher, strict=True)]
    if measure == "cka":
        losses = [cka_loss(own_ND, other_NE) * weights_N.sum() for own_ND, other_NE in pairs]
    else:
        losses = [(relative_l2(own_ND, other_ND) * weights_N).sum() for own_ND, other_ND in pairs]
    return torch.stack(losses).mean()


def cka_loss(X_ND: Float[Tensor, "N D"], Y_NE: Float[Tensor, "N E"]) -> Float[Tensor, ""]:
    """1 − HSIC_1(X, Y) / sqrt(HSIC_1(X, X) HSIC_1(Y, Y)), between 0 and 2, in float32 or higher; at least 4 tokens.

    Where either side's features are constant the quotient counts as 0, without gradient.
    """
    X_ND, Y_NE = _centred(X_ND), _centred(Y_NE)
    xx, yy = _hsic_1(X_ND, X_ND), _hsic_1(Y_NE, Y_NE)
    return 1 - _hsic_1(X_ND, Y_NE) / (xx.clamp_min(RESOLUTION).sqrt() * yy.clamp_min(RESOLUTION).sqrt())


def relative_l2(student_ND: Float[Tensor, "N D"], teacher_ND: Float[Tensor, "N E"]) -> Float[Tensor, " N"]:
    """‖h_S − h_T‖² / ‖h_T‖² of each token, in float32 or higher.

    Raises:
        ConfigError: the widths differ.
    """
    if student_ND.shape != teacher_ND.shape:
        raise ConfigError(
            f"recover.hidden_states: relative_l2 needs equal widths, not {student_ND.shape[-1]} and "
            f"{teacher_ND.shape[-1]}; use measure: cka"
        )
    student_ND, teacher_ND = _wide(student_ND), _wide(teacher_ND)
    norms_N = teacher_ND.square().sum(-1)
    return (student_ND - teacher_ND).square().sum(-1) / norms_N.clamp_min(torch.finfo(norms_N.dtype).tiny)


def _hsic_1(X_ND: Tensor, Y_NE: Tensor) -> Tensor:
    """n(n−3) HSIC_1 of centred features; the factor cancels in CKA.

    With Gram matrices K, L of centred rows, a_i = ‖x_i‖² and b_i = ‖y_i‖², the form in `recoup.cka` becomes
    tr(KL) − n/(n−2) Σ a_i b_i + Σ a_i Σ b_i / ((n−1)(n−2)).
    """
    n = len(X_ND)
    a_N, b_N = X_ND.square().sum(-1), Y_NE.square().sum(-1)
    return _trace(X_ND, Y_NE) - n / (n - 2) * (a_N @ b_N) + a_N.sum() * b_N.sum() / ((n - 1) * (n - 2))


def _trace(X_ND: Tensor, Y_NE: Tensor) -> Tensor:
    """tr(X Xᵀ Y Yᵀ), through whichever is smaller: D × E, or two n × n."""
    n, D, E = len(X_ND), X_ND.shape[1], Y_NE.shape[1]
    if n * (D + E) > D * E:
        return (X_ND.T @ Y_NE).square().sum()
    return ((X_ND @ X_ND.T) * (Y_NE @ Y_NE.T)).sum()


def _centred(X_ND: Tensor) -> Tensor:
    """Rows minus their mean, to the size 1: CKA has no scale, and squares of squares of large features overflow."""
    X_ND = _wide(X_ND)
    centred_ND = X_ND - X_ND.mean(0)
    size = torch.linalg.vector_norm(centred_ND.detach())
    varies = size > ROUNDING * torch.linalg.vector_norm(X_ND.detach())
    return centred_ND / torch.where(varies, size, torch.inf)


def _wide(X_ND: Tensor) -> Tensor:
    return X_ND.to(torch.promote_types(X_ND.dtype, torch.float32))
