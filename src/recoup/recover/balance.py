"""Terms balanced by gradient norm: factors so that the terms' gradients stand in the proportion of their weights.

With weights w_i and gradient norms g_i of the unweighted terms, the factors are f_i = G / g_i: then the norms w_i f_i g_i
stand as the w_i do. G is the geometric mean of the g_i by their weights, so that factors average to 1 (in the logarithm)
and the loss keeps its scale. This is the fixed point of GradNorm (Chen et al. 2018, 1711.02257, with alpha 0), in closed form:
no second backward pass, no weights to be learnt.

Norms are averaged in the logarithm over steps, where a spike of a hundredfold moves the average by a factor 1.6 at rate
0.1; factors stay between 1/10 and 10.

Which gradient: terms have rollouts of their own, so one backward pass is one term's. The cheapest common tensor is
the student's last hidden states; the divergence kernel has their gradient at hand. `squared_norm` undoes the token
weights, which makes the norm one of a token, whatever the term's share, its number of tokens and the present factors.
It stands for the norm over the parameters and is not the same: on a damaged SmolLM2-135M, cross-entropy over forward KL was 1.6
to 2.3 by parameters and 1.8 by hidden states on answers of a file, 1.0 to 1.2 against 1.6 to 1.8 on the student's own text (3
batches of 4 rollouts). `Balance` takes norms from wherever they come.

`Ratio` balances the hidden-state term against the divergence by their values instead. 2606.05682 balances its CKA loss against
the logit loss as training goes on; its rule was not at hand, this one is ours. The term counts weight · d / h, with d and h the
running averages of divergence and term, a constant to autograd: `weight` times the divergence whatever the units and sizes of
the two. Gradient norms would need a second backward pass: the two share no tensor whose gradients come apart.

Shapes: N completion tokens of a micro-batch, D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

RATE = 0.1  # share of a step's norm in the moving average
LARGEST_FACTOR = 10.0
LARGEST_RATIO = 100.0  # KL of 2 nats beside 1 − CKA of 0.02, a healthy start; beyond, the term is all but gone


def squared_norm(grad_ND: Float[Tensor, "N D"], weights_N: Float[Tensor, " N"]) -> tuple[float, float]:
    """Two sums, which `norm` takes; those of a term's micro-batches and processes add up.

    With d_n the gradient of token n's own divergence, the loss Σ w_n · divergence_n has grad_n = w_n d_n. The sums are
    Σ w_n ‖d_n‖² = Σ ‖grad_n‖² / w_n and Σ w_n, so the norm is the root mean square of ‖d_n‖, weighed as the loss is.

    Args:
        grad_ND: gradient of the micro-batch's loss with respect to the last hidden states that predict its tokens.
        weights_N: the weights its tokens had in that loss, factors and all.
    """
    counts_N = weights_N > 0
    squares_N = torch.linalg.vector_norm(grad_ND[counts_N], dim=-1, dtype=torch.float64).square()
    weights_N = weights_N[counts_N].double()
    return float((squares_N / weights_N).sum()), float(weights_N.sum())


def norm(squares: float, weights: float) -> float | None:
    """A term's gradient norm from the sums of `squared_norm`; null where no token had a weight."""
    return math.sqrt(squares / weights) if weights > 0 else None


@dataclass(frozen=True)
class Balance:
    """Moving averages of the terms' gradient norms (their logarithms); null until a term has been measured."""

    log_norms: tuple[float | None, ...] = field(default=())

    @classmethod
    def start(cls, num_terms: int) -> "Balance":
        """Nothing measured: every factor is 1."""
        return cls((None,) * num_terms)

    def after(self, norms: Sequence[float | None]) -> "Balance":
        """The averages with one more step.

        Args:
            norms: one a term; null where the term had no rollout in the step. A norm of 0 or infinity says nothing of scale
                and changes nothing.
        """
        return Balance(tuple(_averaged(old, new) for old, new in zip(self.log_norms, norms, strict=True)))

    def factors(self, weights: Sequence[float]) -> tuple[float, ...]:
        """What each term's weight is multiplied by; 1 for a term that was not measured yet.

        Args:
            weights: of the terms at this step.
        """
        pairs = list(zip(weights, self.log_norms, strict=True))
        known = [(weight, log_norm) for weight, log_norm in pairs if log_norm is not None]
        whole = sum(weight for weight, _ in known)
        if whole == 0:
            return (1.0,) * len(pairs)
        mean = sum(weight * log_norm for weight, log_norm in known) / whole
        bound = math.log(LARGEST_FACTOR)
        return tuple(
            1.0 if log_norm is None else math.exp(min(bound, max(-bound, mean - log_norm))) for _, log_norm in pairs
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal balance back."""
        return {"log_norms": list(self.log_norms)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Balance":
        """The balance that `to_dict` wrote."""
        return cls(tuple(saved["log_norms"]))


@dataclass(frozen=True)
class Ratio:
    """Moving average of the divergence over the hidden-state term (its logarithm); null until both were measured."""

    log_ratio: float | None = None

    def after(self, divergence: float, beside: float) -> "Ratio":
        """The average with one more step.

        Args:
            divergence: the step's loss without the term, nats.
            beside: the term without weight and factor. Debiased CKA may exceed 1, and the term be negative: such a step, and
                one without the term (0), says nothing of scale and changes nothing.
        """
        new = divergence / beside if beside > 0 and divergence > 0 else None
        return Ratio(_averaged(self.log_ratio, new))

    def factor(self) -> float:
        """What the term is multiplied by; 1 before the first measurement, at most 100 and at least 1/100."""
        if self.log_ratio is None:
            return 1.0
        bound = math.log(LARGEST_RATIO)
        return math.exp(min(bound, max(-bound, self.log_ratio)))


def _averaged(old: float | None, new: float | None) -> float | None:
    if new is None or new == 0 or not math.isfinite(new):
        return old
    return math.log(new) if old is None else (1 - RATE) * old + RATE * math.log(new)
