"""Divergences from hidden states: both heads' products, the divergence and its gradients in one pass over chunks of tokens.

Logits are made a few hundred tokens at a time, turned into d loss / d logits in place by the analytic formulas of
`formulas`, and multiplied at once into the gradients of the hidden states and of the student's head: four products, the
least that exact gradients need, and no graph over the vocabulary. TRL's tiled loss makes its logits twice (six products) or
three times (Jensen-Shannon); Liger's lets autograd differentiate each chunk and keeps two copies of the head's gradient.
How the work is cut is told in `chunks`, its precision in `products`, the sums of gradients in `gradients`.

With y = hidden · Wᵀ + b and logits z = c tanh(scale · y / c), d loss / d y = scale · (1 − (z / c)²) · d loss / d z.

Shapes: N tokens, C tokens of a chunk, D width, V vocabulary, K likeliest tokens.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from recoup.divergence.chunks import blocks, logit_rows, spans
from recoup.divergence.formulas import Formula, checked_beta, formula, wide
from recoup.divergence.gradients import Gradients
from recoup.divergence.head import Head, HiddenTargets, Targets, TopKTargets
from recoup.divergence.products import project
from recoup.divergence.topk import bucketed


@dataclass(frozen=True)
class Rule:
    """Which divergence; `beta` is read by Jensen-Shannon only (convention: `formulas.jensen_shannon`).

    Raises:
        ValueError: beta is outside (0, 1) for Jensen-Shannon.
    """

    name: Literal["forward_kl", "reverse_kl", "jensen_shannon"]
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.name == "jensen_shannon":
            checked_beta(self.beta)


@dataclass(frozen=True)
class Compared:
    """What `compare` found."""

    loss: Float[Tensor, ""]  # weighted sum; gradients flow from it, once
    per_token_N: Float[Tensor, " N"]  # float32, no graph, no weights, nats


def compare(
    student_hidden_ND: Float[Tensor, "N D"],
    student_head: Head,
    targets: Targets,
    rule: Rule,
    weights_N: Float[Tensor, " N"],
    num_shared: int | None = None,
) -> Compared:
    """sum_n weights_N[n] · divergence_n between the teacher's and the student's next-token distributions.

    Gradients flow to the student's hidden states and to the weight and bias of its head, where they require any; what
    needs none is not worked out. They are made in the forward pass, so `loss.backward()` may be called once.

    Args:
        student_hidden_ND: Last hidden states, which enter the head.
        student_head: Tied or not, bfloat16 or wider.
        targets: The teacher's hidden states and head, which may be of another width: exact. Or its K likeliest tokens:
            `topk` says what that approximates.
        rule: Which divergence.
        weights_N: Weight of each token in the sum; no gradient flows to it.
        num_shared: Leading vocabulary entries both models know: both heads are cut there, and both
            distributions normalised over what is left. All when None.

    Raises:
        ValueError: the vocabularies differ and `num_shared` is not given, it exceeds one of them, the teacher scored
            another number of tokens, or one of its likeliest tokens is not shared.
    """
    vocabulary = student_head.cut(num_shared).weight_VD.shape[0]
    targets = _fitting(targets, student_hidden_ND.shape[0], vocabulary, num_shared)
    task = _Task(student_head, vocabulary, targets, formula(rule.name, rule.beta), weights_N.detach())
    loss, per_token_N = _Fused.apply(student_hidden_ND, student_head.weight_VD, student_head.bias_V, task)
    return Compared(loss, per_token_N)


@dataclass(frozen=True)
class _Task:
    """What autograd need not see."""

    student: Head
    vocabulary: int
    targets: Targets
    rule: Formula
    weights_N: Tensor


def _fitting(targets: Targets, tokens: int, vocabulary: int, num_shared: int | None) -> Targets:
    """The targets over the shared vocabulary."""
    scored = targets.hidden_ND.shape[0] if isinstance(targets, HiddenTargets) else targets.ids_NK.shape[0]
    if scored != tokens:
        raise ValueError(f"the teacher scored {scored} tokens, the student {tokens}: give both the same rollouts")
    if isinstance(targets, TopKTargets):
        if tokens and int(targets.ids_NK.max()) >= vocabulary:
            raise ValueError(f"the teacher's likeliest tokens go beyond the {vocabulary} shared: ask it for those only")
        return targets
    head = targets.head.cut(num_shared)
    if head.weight_VD.shape[0] != vocabulary:
        raise ValueError(
            f"the student's head knows {vocabulary} tokens, the teacher's {head.weight_VD.shape[0]}: "
            "say how many leading tokens they share (num_shared)"
        )
    return HiddenTargets(targets.hidden_ND.detach(), head)


class _Fused(torch.autograd.Function):
    """Loss and gradients in one pass; `backward` only hands them over."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: _Task
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight_VD, bias_V, task.student.scale, task.student.softcap)
        gradients = Gradients(hidden_ND, head, task.vocabulary, ctx.needs_input_grad[:3])
        with torch.autocast(hidden_ND.device.type, enabled=False):  # precision is decided in `products` alone
            value_N = _walk(hidden_ND, head.cut(task.vocabulary), task, gradients)
        ctx.gradients = gradients
        per_token_N = value_N.float()
        ctx.mark_non_differentiable(per_token_N)
        return (value_N * task.weights_N).sum(), per_token_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        assert ctx.gradients is not None, "the gradients of a comparison are handed over once"
        results = ctx.gradients.results()
        ctx.gradients = None  # so that autograd takes the tensors instead of copying them
        if upstream != 1:
            for gradient in results:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *results, None


def _walk(hidden_ND: Tensor, head: Head, task: _Task, gradients: Gradients) -> Tensor:
    """Every token's divergence; on the way each chunk's slopes are added to the gradients."""
    tokens, device, sums = hidden_ND.shape[0], hidden_ND.device, wide(gradients.kept)
    most = min(tokens, logit_rows(task.vocabulary, device))
    teacher = _teacher(task.targets, task.rule, most, task.vocabulary)
    slope_CV = hidden_ND.new_empty(min(tokens, gradients.rows), task.vocabulary, dtype=gradients.kept)
    apart = gradients.kept != sums  # wide slopes are written over their logits
    logits_CV = hidden_ND.new_empty(most, task.vocabulary, dtype=sums) if apart else slope_CV
    value_N = hidden_ND.new_empty(tokens, dtype=sums)
    for chunk in spans(tokens, gradients.rows):
        for part in spans(chunk.stop - chunk.start, most):
            rows = slice(chunk.start + part.start, chunk.start + part.stop)
            here_CV = logits_CV[: part.stop - part.start] if apart else slope_CV[part]
            project(hidden_ND[rows], head, here_CV)
            teacher.score(rows)
            for block in blocks(here_CV.shape[0], task.vocabulary, device):
                value_N[rows][block], slope_BV = teacher.compare(here_CV[block], block)
                slope_CV[part][block] = _before_cap(slope_BV, here_CV[block], head.softcap)
        gradients.add(slope_CV[: chunk.stop - chunk.start], chunk, task.weights_N[chunk])
    return value_N


def _before_cap(slope_CV: Tensor, logits_CV: Tensor, softcap: float | None) -> Tensor:
    """Turn d/dz into d/d(scale · y): tanh' = 1 − tanh²."""
    return slope_CV if softcap is None else slope_CV.mul_(1 - (logits_CV / softcap).square_())


class _HiddenTeacher:
    """Makes the teacher's logits for one chunk at a time."""

    def __init__(self, targets: HiddenTargets, rule: Formula, rows: int, vocabulary: int) -> None:
        sums = wide(torch.promote_types(targets.hidden_ND.dtype, targets.head.weight_VD.dtype))
        self._targets, self._rule = targets, rule
        self._logits_CV = targets.hidden_ND.new_empty(rows, vocabulary, dtype=sums)

    def score(self, rows: slice) -> None:
        """Move on to these tokens."""
        project(self._targets.hidden_ND[rows], self._targets.head, self._logits_CV[: rows.stop - rows.start])

    def compare(self, student_BV: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Value and slope for a block of the chunk."""
        teacher_BV = self._logits_CV[block].log_softmax(-1).to(student_BV.dtype)
        return self._rule(student_BV.log_softmax(-1), teacher_BV)


class _TopKTeacher:
    """Reads off what the teacher said."""

    def __init__(self, targets: TopKTargets, rule: Formula) -> None:
        self._targets, self._rule = targets, rule

    def score(self, rows: slice) -> None:
        """Move on to these tokens."""
        self._ids_CK, self._logp_CK = self._targets.ids_NK[rows], self._targets.logp_NK[rows]

    def compare(self, student_BV: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Value and slope for a block of the chunk."""
        return bucketed(student_BV, self._ids_CK[block], self._logp_CK[block], self._rule)


def _teacher(targets: Targets, rule: Formula, rows: int, vocabulary: int) -> _HiddenTeacher | _TopKTeacher:
    if isinstance(targets, TopKTargets):
        return _TopKTeacher(targets, rule)
    return _HiddenTeacher(targets, rule, rows, vocabulary)
