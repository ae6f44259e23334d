"""Divergences from a teacher known by its K likeliest tokens only; the rest is one token, the tail.

Both distributions are reduced to K + 1 outcomes and compared exactly. Merging outcomes can only bring two distributions
nearer (log-sum inequality, Cover & Thomas, theorem 2.7.1), so each divergence is a lower bound of the full one, with
equality where student and teacher share out the tail in the same proportions. Bare top-k without a tail is no
divergence, and unstable as reverse KL (verl issue 5041).

Shapes: N tokens, C tokens of a block, D width, V vocabulary, K likeliest tokens.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recoup.divergence.chunks import logit_rows, spans
from recoup.divergence.formulas import FLOOR, Formula, wide
from recoup.divergence.head import Head, TopKTargets
from recoup.divergence.products import project

LEAST_TAIL = float(torch.finfo(torch.float32).eps)  # 1 − sum of float32 probabilities cannot tell less from 0


@torch.no_grad()
def top_k(hidden_ND: Float[Tensor, "N D"], head: Head, k: int, num_shared: int | None = None) -> TopKTargets:
    """The `k` likeliest tokens of each position and their log-probabilities, likeliest first, worked out in chunks.

    Args:
        hidden_ND: The teacher's last hidden states.
        head: The teacher's head.
        k: Tokens kept.
        num_shared: Leading vocabulary entries that count; probabilities are normalised over them. All when None.

    Raises:
        ValueError: k is not between 1 and the vocabulary.
    """
    head = head.cut(num_shared)
    vocabulary = head.weight_VD.shape[0]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k must lie between 1 and the vocabulary of {vocabulary} tokens, got {k}")
    tokens, sums = hidden_ND.shape[0], wide(hidden_ND.dtype)
    ids_NK = hidden_ND.new_empty(tokens, k, dtype=torch.long)
    logp_NK = hidden_ND.new_empty(tokens, k, dtype=sums)
    rows = logit_rows(vocabulary, hidden_ND.device)
    logits_CV = hidden_ND.new_empty(min(rows, tokens), vocabulary, dtype=sums)
    for chunk in spans(tokens, rows):
        part_CV = logits_CV[: chunk.stop - chunk.start]
        project(hidden_ND[chunk], head, part_CV)
        largest_CK, ids_NK[chunk] = part_CV.topk(k)
        logp_NK[chunk] = largest_CK - part_CV.logsumexp(-1, keepdim=True)
    return TopKTargets(ids_NK, logp_NK)


def bucketed(
    logits_CV: Float[Tensor, "C V"], ids_CK: Int[Tensor, "C K"], logp_CK: Float[Tensor, "C K"], rule: Formula
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C V"]]:
    """Value and d value / d student logits over the K likeliest tokens and the tail.

    A tail token's slope is the tail's, shared out by the student's own probabilities within the tail.
    """
    rest_CV = logits_CV.scatter(1, ids_CK, -torch.inf)
    tail_C1 = rest_CV.logsumexp(-1, keepdim=True).clamp_min_(FLOOR)
    student_CK1 = torch.cat([logits_CV.gather(1, ids_CK), tail_C1], 1).log_softmax(-1)
    whole = ids_CK.shape[1] == logits_CV.shape[1]
    teacher_CK1 = torch.cat([logp_CK.to(logits_CV.dtype), _teacher_tail(logp_CK, whole).to(logits_CV.dtype)], 1)
    value_C, slope_CK1 = rule(student_CK1, teacher_CK1)
    slope_CV = rest_CV.sub_(tail_C1).exp_().mul_(slope_CK1[:, -1:])
    return value_C, slope_CV.scatter_(1, ids_CK, slope_CK1[:, :-1])


def _teacher_tail(logp_CK: Tensor, whole: bool) -> Tensor:
    """Log-probability of all other tokens, (C, 1)."""
    if whole:
        return torch.full_like(logp_CK[:, :1], FLOOR)
    return (1 - logp_CK.double().exp().sum(-1, keepdim=True)).clamp_min_(LEAST_TAIL).log_()
