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

LogitsNV = Float[Tensor, "N V"]
PerTokenN = Float[Tensor, " N"]
Formula = Callable[[LogitsNV, LogitsNV], tuple[PerTokenN, LogitsNV]]  # student logp, teacher logp → value, gradient

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # of float32: 4 MB stay in a core's cache, 256 MB fill a GPU


def forward_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_T ‖ p_S): the student must cover what the teacher says (the loss of all results of 2601.19897)."""
    return _per_token(student_logits_NV, teacher_logits_NV, _forward_kl)


def reverse_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_S ‖ p_T): the student must not say what the teacher would not (2604.15794)."""
    return _per_token(student_logits_NV, teacher_logits_NV, _reverse_kl)


def jensen_shannon(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV, beta: float) -> PerTokenN:
    """(1−beta) KL(p_S ‖ m) + beta KL(p_T ‖ m) with m = (1−beta) p_S + beta p_T, 0 < beta < 1.

    Divided by beta it tends to KL(p_T ‖ p_S) as beta → 0; divided by 1−beta to KL(p_S ‖ p_T) as beta → 1.

    Raises:
        ValueError: beta is outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie strictly between 0 and 1, got {beta}; use forward_kl or reverse_kl at the ends"
        )
    return _per_token(
        student_logits_NV, teacher_logits_NV, lambda student, teacher: _jensen_shannon(student, teacher, beta)
    )


def overlap(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """sum_v min(p_T, p_S), in [0, 1]: the chance that the teacher accepts a token the student draws (2211.17192, eq. 3)."""
    return torch.minimum(_logp(student_logits_NV), _logp(teacher_logits_NV)).exp().sum(-1)


def named(divergence: str, jensen_shannon_beta: float) -> Callable[[LogitsNV, LogitsNV], PerTokenN]:
    """The divergence a config names."""
    table: dict[str, Callable[[LogitsNV, LogitsNV], PerTokenN]] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": lambda student, teacher: jensen_shannon(student, teacher, jensen_shannon_beta),
    }
    return table[divergence]


def _forward_kl(student_NV: LogitsNV, teacher_NV: LogitsNV) -> tuple[PerTokenN, LogitsNV]:
    q_NV = teacher_NV.exp()
    value_N = _expectation(q_NV, teacher_NV - student_NV)
    return value_N, student_NV.exp().sub_(q_NV)


def _reverse_kl(student_NV: LogitsNV, teacher_NV: LogitsNV) -> tuple[PerTokenN, LogitsNV]:
    p_NV, gap_NV = student_NV.exp(), student_NV - teacher_NV
    value_N = _expectation(p_NV, gap_NV)
    return value_N, _product(p_NV, gap_NV - value_N[:, None])


def _jensen_shannon(student_NV: LogitsNV, teacher_NV: LogitsNV, beta: float) -> tuple[PerTokenN, LogitsNV]:
    p_NV, q_NV = student_NV.exp(), teacher_NV.exp()
    mixture_NV = ((1 - beta) * p_NV + beta * q_NV).log_()
    gap_NV = student_NV - mixture_NV
    student_N, teacher_N = _expectation(p_NV, gap_NV), _expectation(q_NV, teacher_NV - mixture_NV)
    return (1 - beta) * student_N + beta * teacher_N, (1 - beta) * _product(p_NV, gap_NV - student_N[:, None])


def _expectation(p_NV: LogitsNV, values_NV: LogitsNV) -> PerTokenN:
    return _product(p_NV, values_NV).sum(-1)


def _product(p_NV: LogitsNV, values_NV: LogitsNV) -> LogitsNV:
    """Product p · value, where a token of probability 0 adds nothing, whatever its (infinite) value."""
    return torch.where(p_NV > 0, p_NV * values_NV, 0)


def _logp(logits_NV: LogitsNV) -> LogitsNV:
    wide = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    return torch.log_softmax(logits_NV, dim=-1, dtype=wide)


def _per_token(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV, formula: Formula) -> PerTokenN:
    value_N: PerTokenN = _Analytic.apply(student_logits_NV, teacher_logits_NV.detach(), formula)
    return value_N


class _Analytic(torch.autograd.Function):
    """Value and gradient, a few rows at a time; the gradient waits in the student's own type."""

    @staticmethod
    def forward(ctx: Any, student_logits_NV: Tensor, teacher_logits_NV: Tensor, formula: Formula) -> Tensor:
        keep = ctx.needs_input_grad[0]
        rows, vocabulary = student_logits_NV.shape
        size = max(1, CHUNK_ELEMENTS.get(student_logits_NV.device.type, CHUNK_ELEMENTS["cuda"]) // vocabulary)
        gradient_NV = torch.empty_like(student_logits_NV) if keep else None
        values = []
        for start in range(0, rows, size):
            chunk = slice(start, start + size)
            value_N, slope_NV = formula(_logp(student_logits_NV[chunk]), _logp(teacher_logits_NV[chunk]))
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
