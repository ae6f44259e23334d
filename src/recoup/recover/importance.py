"""Importance correction: what a token counts whose writer was not the student as it now is.

A stale student or a foreign sampler (vLLM's kernels, bf16 weights) draws from p_sampler where the objective asks for p_student.
Token-level truncated importance sampling weighs each token by min(C, p_student / p_sampler): Ionides 2008, "Truncated
Importance Sampling" (truncation bounds the variance for a small bias); Yao et al. 2025, "Your Efficient RL Framework Secretly
Brings You Off-Policy RL Training" (per token, between a trainer and its rollout engine). Weights are constants: no gradient
goes through them. Where we differ: both probabilities are taken at the sampling temperature, the distribution drawn from.

Shapes: N completion tokens, D width, V vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recoup.divergence import Head

CHUNK_TOKENS = 256  # rows of logits alive at once: 256 x 151,936 float32 are 156 MB


@torch.no_grad()
def importance_weights(
    logp_student_N: Float[Tensor, " N"], logp_sampler_N: Float[Tensor, " N"], cap: float
) -> Float[Tensor, " N"]:
    """min(cap, p_student / p_sampler) of every token, float32.

    Args:
        logp_student_N: natural log-probability of each drawn token under the student as it is.
        logp_sampler_N: the same under whoever drew it, at the same temperature.
        cap: C, the largest weight.
    """
    return (logp_student_N.float() - logp_sampler_N.float()).exp().clamp_max(cap)


def effective_share(weights_N: Float[Tensor, " N"]) -> float:
    """Effective sample size as a share of N: (sum w)^2 / (N sum w^2), 1 for equal weights, 1/N for one that has it all.

    Source: Kong 1992, "A Note on Importance Sampling using Standardized Weights". 0 when every weight is 0.
    """
    total, squares = weights_N.double().sum(), weights_N.double().square().sum()
    return float(total.square() / (len(weights_N) * squares)) if squares > 0 else 0.0


@torch.no_grad()
def completion_logp(
    hidden_ND: Float[Tensor, "N D"], head: Head, tokens_N: Int[Tensor, " N"], temperature: float = 1.0
) -> Float[Tensor, " N"]:
    """Log-probability of each token under softmax(logits / temperature), nats, float32; CHUNK_TOKENS rows at a time.

    The head runs in the type of the hidden states, as it does when sampling; all after it is float32.
    """
    parts = zip(hidden_ND.split(CHUNK_TOKENS), tokens_N.split(CHUNK_TOKENS), strict=True)
    return torch.cat([_chunk_logp(hidden, head, tokens, temperature) for hidden, tokens in parts])


def _chunk_logp(
    hidden_ND: Float[Tensor, "N D"], head: Head, tokens_N: Int[Tensor, " N"], temperature: float
) -> Float[Tensor, " N"]:
    logits_NV = head.logits(hidden_ND).float() / temperature
    return logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(1)
