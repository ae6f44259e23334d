"""A student and a teacher of other width over a tiny vocabulary, and what torch's own chain rule says of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from recoup.divergence import Compared, Head, HiddenTargets, Rule, compare, forward_kl, jensen_shannon, reverse_kl

RULES = [Rule("forward_kl"), Rule("reverse_kl"), Rule("jensen_shannon", 0.3)]
HEADS = {
    "plain": Head(torch.empty(0, 0)),
    "scale": Head(torch.empty(0, 0), scale=0.5),
    "softcap": Head(torch.empty(0, 0), softcap=2.0),
    "scale and softcap": Head(torch.empty(0, 0), scale=1.7, softcap=3.0),
}
TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 5, 4, 6, 11
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def named(divergence: str, beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The public function of a divergence, from logits."""
    table: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": partial(jensen_shannon, beta=beta),
    }
    return table[divergence]


@dataclass
class Case:
    """A student with trainable hidden states and head, a teacher of another width, weights."""

    hidden_ND: Tensor
    head: Head
    targets: HiddenTargets
    weights_N: Tensor

    def compare(self, rule: Rule, num_shared: int | None = None) -> Compared:
        return compare(self.hidden_ND, self.head, self.targets, rule, self.weights_N, num_shared)

    def inputs(self) -> list[Tensor]:
        asked = [self.hidden_ND, self.head.weight_VD, self.head.bias_V]
        return [tensor for tensor in asked if tensor is not None and tensor.requires_grad]


def case(like: str = "plain", bias: bool = False, kind: torch.dtype = torch.float64, tokens: int = TOKENS) -> Case:
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind)

    bias_V = normal(VOCABULARY).requires_grad_() if bias else None
    head = replace(HEADS[like], weight_VD=normal(VOCABULARY, WIDTH).requires_grad_(), bias_V=bias_V)
    teacher = replace(HEADS[like], weight_VD=normal(VOCABULARY, TEACHER_WIDTH), bias_V=normal(VOCABULARY))
    targets = HiddenTargets(normal(tokens, TEACHER_WIDTH), teacher)
    return Case(normal(tokens, WIDTH).requires_grad_(), head, targets, torch.rand(tokens, generator=generator))


def by_autograd(given: Case, rule: Rule, num_shared: int | None = None) -> tuple[Tensor, Tensor]:
    """Loss and per-token values from whole logits in float64, differentiable by torch's own chain rule."""
    p_NV = given.head.logits(given.hidden_ND)[:, :num_shared].log_softmax(-1)
    q_NV = given.targets.head.logits(given.targets.hidden_ND)[:, :num_shared].log_softmax(-1)

    def kl(a_NV: Tensor, b_NV: Tensor) -> Tensor:
        return (a_NV.exp() * (a_NV - b_NV)).sum(-1)

    beta = rule.beta
    m_NV = ((1 - beta) * p_NV.exp() + beta * q_NV.exp()).log()
    value_N = {
        "forward_kl": kl(q_NV, p_NV),
        "reverse_kl": kl(p_NV, q_NV),
        "jensen_shannon": (1 - beta) * kl(p_NV, m_NV) + beta * kl(q_NV, m_NV),
    }[rule.name]
    return (value_N * given.weights_N).sum(), value_N


def assert_as_autograd(given: Case, rule: Rule, num_shared: int | None = None) -> None:
    found = given.compare(rule, num_shared)
    loss, value_N = by_autograd(given, rule, num_shared)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.per_token_N, value_N.detach().float())
    gradients = zip(
        torch.autograd.grad(found.loss, given.inputs()), torch.autograd.grad(loss, given.inputs()), strict=True
    )
    for ours, expected in gradients:
        torch.testing.assert_close(ours, expected)
