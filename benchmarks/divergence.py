"""Divergences: `recoup.divergence` against the same formulas under autograd, value and gradient to the student's logits.

Run: `python -m benchmarks.divergence`
"""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import compare
from recoup.divergence import forward_kl

TOKENS, VOCABULARY = 512, 49_152


def autograd_forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """What a trainer writes with torch's own functions."""
    student_logp, teacher_logp = (
        functional.log_softmax(student.float(), -1),
        functional.log_softmax(teacher.float(), -1),
    )
    return functional.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(-1)


def main() -> None:
    """Print the ratio for bf16 logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(TOKENS, VOCABULARY, generator=generator).bfloat16() for _ in range(2))
    student.requires_grad_()
    compare(
        "forward KL and gradient",
        lambda: torch.autograd.grad(forward_kl(student, teacher).sum(), student),
        lambda: torch.autograd.grad(autograd_forward_kl(student, teacher).sum(), student),
        "autograd",
    )


if __name__ == "__main__":
    main()
