"""Full-vocabulary divergences between a teacher and a student, per token, in nats (METHOD section 4).

Pure functions of logits, float32 or higher inside. All are true divergences: zero, with zero gradient, where the student
equals the teacher; forward KL is not cross-entropy.

Shapes: N tokens, V vocabulary.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

LogitsNV = Float[Tensor, "N V"]
PerTokenN = Float[Tensor, " N"]


def forward_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_T ‖ p_S) = sum_v p_T log(p_T / p_S): the student must cover what the teacher says (2601.19897, as published)."""
    student_logp_NV, teacher_logp_NV = _logp(student_logits_NV), _logp(teacher_logits_NV)
    return _kl(teacher_logp_NV, student_logp_NV)


def reverse_kl(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV) -> PerTokenN:
    """KL(p_S ‖ p_T) = sum_v p_S log(p_S / p_T): the student must not say what the teacher would not (2604.15794)."""
    student_logp_NV, teacher_logp_NV = _logp(student_logits_NV), _logp(teacher_logits_NV)
    return _kl(student_logp_NV, teacher_logp_NV)


def jensen_shannon(student_logits_NV: LogitsNV, teacher_logits_NV: LogitsNV, beta: float) -> PerTokenN:
    """(1−beta) KL(p_S ‖ m) + beta KL(p_T ‖ m) with m = (1−beta) p_S + beta p_T, 0 < beta < 1.

    Divided by beta it tends to KL(p_T ‖ p_S) as beta → 0; divided by 1−beta to KL(p_S ‖ p_T) as beta → 1 (METHOD section 4).

    Raises:
        ValueError: beta is outside (0, 1).
    """
    if not 0 < beta < 1:
        raise ValueError(
            f"beta must lie strictly between 0 and 1, got {beta}; use forward_kl or reverse_kl at the ends"
        )
    student_logp_NV, teacher_logp_NV = _logp(student_logits_NV), _logp(teacher_logits_NV)
    weights = torch.tensor([1 - beta, beta], device=student_logp_NV.device, dtype=student_logp_NV.dtype).log()
    mixture_NV = torch.logaddexp(student_logp_NV + weights[0], teacher_logp_NV + weights[1])
    return (1 - beta) * _kl(student_logp_NV, mixture_NV) + beta * _kl(teacher_logp_NV, mixture_NV)


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


def _logp(logits_NV: LogitsNV) -> LogitsNV:
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return torch.log_softmax(wide, dim=-1)


def _kl(logp_NV: LogitsNV, logq_NV: LogitsNV) -> PerTokenN:
    """sum_v p (log p − log q); a token with p = 0 (a logit of −inf) adds nothing."""
    p_NV = logp_NV.exp()
    return torch.where(p_NV > 0, p_NV * (logp_NV - logq_NV), 0).sum(-1)
