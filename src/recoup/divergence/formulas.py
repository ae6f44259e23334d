"""Full-vocabulary divergences between a teacher and a student, per token, in nats (METHOD section 4).

All are true divergences: zero, with zero gradient, where the student equals the teacher; forward KL is not cross-entropy.
The gradient to the student's logits is analytic and worked out beside the value, a few rows at a time, in float32 (float64
for float64 logits): one pass that stays in the processor's cache, and no autograd graph over the vocabulary. The teacher gets no
gradient.

Shapes: N tokens, V vocabulary. With p = softmax(student logits z), q = softmax(teacher logits), m their mixture:

    forward_kl       sum q (log q − log p)                                  d/dz = p − q
    reverse_kl       sum p (log p − log q)                                  d/dz = p (log p − log q − value)
    jensen_shannon   (1−beta) KL(p ‖ m) + beta KL(q ‖ m)                    d/dz = (1−beta) p (log p − log m − KL(p ‖ m))
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from recoup.divergence.chunks import blocks

LogitsNV = Float[Tensor, "N V"]
PerTokenN = Float[Tensor, " N"]
Formula = Callable[[LogitsNV, LogitsNV], tuple[PerTokenN, LogitsNV]]  # student logp, teacher logp → value, gradient

FLOOR = (
    -1e30
)  # logp of an impossible token: its probability is 0 and 0 · logp is 0, where 0 · inf would not be a number


def forward_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_T ‖ p_S): the student must cover what the teacher says (the loss of all results of 2601.19897)."""
    return _per_token(student_logits_NV, teacher_logits_NV, formula("forward_kl", 0.0))


def reverse_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_S ‖ p_T): the student must not say what the teacher would not (2604.15794)."""
    return _per_token(student_logits_NV, teacher_logits_NV, formula("reverse_kl", 0.0))


def jensen_shannon(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV, beta: float) -> PerTokenN:
    """(1−beta) KL(p_S ‖ m) + beta KL(p_T ‖ m) with m = (1−beta) p_S + beta p_T, 0 < beta < 1.

    Divided by beta it tends to KL(p_T ‖ p_S) as beta → 0; divided by 1−beta to KL(p_S ‖ p_T) as beta → 1.

    Raises:
        ValueError: beta is outside (0, 1).
    """
    return _per_token(student_logits_NV, teacher_logits_NV, formula("jensen_shannon", checked_beta(beta)))


def overlap(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """sum_v min(p_T, p_S), in [0, 1]: the chance that the teacher accepts a token the student draws (2211.17192, eq. 3)."""
    return torch.minimum(_logp(student_logits_NV), _logp(teacher_logits_NV)).exp().sum(-1)


def formula(divergence: str, beta: float) -> Formula:
    """Value and d value / d student logits of the divergence a config names, from both models' logp.

    The one source of both, for logits here and for hidden states in `fused`. Log-probabilities must be finite (`FLOOR`
    for impossible tokens). **What is passed is overwritten**: the work stays in the cache that holds it.
    """
    table: dict[str, Formula] = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "jensen_shannon": lambda student, teacher: _jensen_shannon(student, teacher, beta),
    }
    return table[divergence]


def checked_beta(beta: float) -> float:
    """`beta` itself.

    Raises:
        ValueError: beta is outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie strictly between 0 and 1, got {beta}; use forward_kl or reverse_kl at the ends"
        )
    return beta


def wide(kind: torch.dtype) -> torch.dtype:
    """The type sums are worked out in: float64 for float64, else float32."""
    return torch.float64 if kind == torch.float64 else torch.float32


def _forward_kl(student_NV: LogitsNV, teacher_NV: LogitsNV) -> tuple[PerTokenN, LogitsNV]:
    q_NV = teacher_NV.exp()
    value_N = _expectation(q_NV, teacher_NV.sub_(student_NV))
    return value_N, student_NV.exp_().sub_(q_NV)


def _reverse_kl(student_NV: LogitsNV, teacher_NV: LogitsNV) -> tuple[PerTokenN, LogitsNV]:
    p_NV = student_NV.exp()
    gap_NV = student_NV.sub_(teacher_NV)
    value_N = _expectation(p_NV, gap_NV)
    return value_N, gap_NV.sub_(value_N[:, None]).mul_(p_NV)


def _jensen_shannon(student_NV: LogitsNV, teacher_NV: LogitsNV, beta: float) -> tuple[PerTokenN, LogitsNV]:
    p_NV, q_NV = student_NV.exp(), teacher_NV.exp()
    smallest = torch.finfo(p_NV.dtype).tiny  # keeps log m finite where both have underflowed to 0 and add nothing
    mixture_NV = torch.lerp(p_NV, q_NV, beta).clamp_min_(smallest).log_()
    gap_NV = student_NV.sub_(mixture_NV)
    student_N, teacher_N = _expectation(p_NV, gap_NV), _expectation(q_NV, teacher_NV.sub_(mixture_NV))
    slope_NV = gap_NV.sub_(student_N[:, None]).mul_(p_NV).mul_(1 - beta)
    return (1 - beta) * student_N + beta * teacher_N, slope_NV


def _expectation(p_NV: LogitsNV, values_NV: LogitsNV) -> PerTokenN:
    return (p_NV * values_NV).sum(-1)


def _logp(logits_NV: LogitsNV) -> LogitsNV:
    return torch.log_softmax(logits_NV, dim=-1, dtype=wide(logits_NV.dtype)).clamp_min_(FLOOR)


def _per_token(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV, rule: Formula) -> PerTokenN:
    value_N: PerTokenN = _Analytic.apply(student_logits_NV, teacher_logits_NV.detach(), rule)
    return value_N


class _Analytic(torch.autograd.Function):
    """Value and gradient, a few rows at a time; the gradient waits in the student's own type."""

    @staticmethod
    def forward(ctx: Any, student_logits_NV: Tensor, teacher_logits_NV: Tensor, rule: Formula) -> Tensor:
        keep = ctx.needs_input_grad[0]
        rows, vocabulary = student_logits_NV.shape
        gradient_NV = torch.empty_like(student_logits_NV) if keep else None
        values = []
        for chunk in blocks(rows, vocabulary, student_logits_NV.device):
            value_N, slope_NV = rule(_logp(student_logits_NV[chunk]), _logp(teacher_logits_NV[chunk]))
            values.append(value_N)
            if gradient_NV is not None:
                gradient_NV[chunk] = slope_NV
        ctx.gradient_NV = gradient_NV
        return torch.cat(values) if values else student_logits_NV.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor, None, None]:
        gradient_NV = ctx.gradient_NV
        return torch.mul(gradient_NV, upstream_N[:, None], out=torch.empty_like(gradient_NV)), None, None
