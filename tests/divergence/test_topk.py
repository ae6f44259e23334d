"""A teacher known by its likeliest tokens: by hand, exact where nothing is left out, a lower bound, checked gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recoup.divergence import Head, HiddenTargets, Rule, TopKTargets, chunks, compare, top_k

RULES = [Rule("forward_kl"), Rule("reverse_kl"), Rule("jensen_shannon", 0.3)]
TOKENS, WIDTH, VOCABULARY = 5, 4, 9
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def setting(seed: int) -> tuple[Tensor, Head, HiddenTargets]:
    generator = torch.Generator().manual_seed(seed)
    hidden_ND, taught_ND = (torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    weight_VD, other_VD = (torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    head = Head(weight_VD.requires_grad_(), softcap=4.0)
    return hidden_ND.requires_grad_(), head, HiddenTargets(taught_ND, Head(other_VD, scale=0.7))


def test_by_hand() -> None:
    # Student logits 0 over 4 tokens: p = 1/4 each. The teacher says: token 2 has 1/2; so the tail has 1/2, the student's 3/4.
    head = Head(torch.zeros(4, 1, requires_grad=True))
    targets = TopKTargets(torch.tensor([[2]]), torch.tensor([[math.log(0.5)]]))
    found = compare(torch.ones(1, 1), head, targets, Rule("forward_kl"), torch.ones(1))
    # 1/2 ln((1/2)/(1/4)) + 1/2 ln((1/2)/(3/4))
    assert found.loss.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    # d/dz: token 2: 1/4 − 1/2; the tail: 3/4 − 1/2 = 1/4, a third to each
    found.loss.backward()
    assert head.weight_VD.grad is not None
    assert head.weight_VD.grad.flatten().tolist() == pytest.approx([1 / 12, 1 / 12, -1 / 4, 1 / 12])


@each_rule
def test_all_tokens_are_exact(rule: Rule) -> None:
    hidden_ND, head, targets = setting(0)
    inputs, weights_N = (hidden_ND, head.weight_VD), torch.rand(TOKENS)
    whole = compare(hidden_ND, head, targets, rule, weights_N)
    listed = compare(hidden_ND, head, top_k(targets.hidden_ND, targets.head, VOCABULARY), rule, weights_N)
    torch.testing.assert_close(listed.per_token_N, whole.per_token_N)
    for ours, exact in zip(
        torch.autograd.grad(listed.loss, inputs), torch.autograd.grad(whole.loss, inputs), strict=True
    ):
        torch.testing.assert_close(ours, exact)


@given(seed=st.integers(0, 10_000), k=st.integers(1, VOCABULARY - 1))
@settings(deadline=None, max_examples=25)
def test_never_above_the_full_divergence_and_grows_with_k(seed: int, k: int) -> None:
    hidden_ND, head, targets = setting(seed)
    for rule in RULES:
        full_N = compare(hidden_ND, head, targets, rule, torch.ones(TOKENS)).per_token_N
        fewer_N, more_N = (
            compare(
                hidden_ND, head, top_k(targets.hidden_ND, targets.head, count), rule, torch.ones(TOKENS)
            ).per_token_N
            for count in (k, k + 1)
        )
        assert (fewer_N <= more_N + 1e-6).all()  # splitting the tail is a finer partition
        assert (more_N <= full_N + 1e-6).all()
        assert (fewer_N >= 0).all()


@each_rule
def test_gradients_against_autograd_over_the_reduced_outcomes(rule: Rule) -> None:
    hidden_ND, head, targets = setting(1)
    said = top_k(targets.hidden_ND, targets.head, 3)
    found = compare(hidden_ND, head, said, rule, torch.ones(TOKENS))
    p_NV = head.logits(hidden_ND).softmax(-1)
    p_NK1 = torch.cat([p_NV.gather(1, said.ids_NK), 1 - p_NV.gather(1, said.ids_NK).sum(-1, keepdim=True)], 1)
    q_NK = said.logp_NK.exp()
    q_NK1 = torch.cat([q_NK, 1 - q_NK.sum(-1, keepdim=True)], 1)
    m_NK1 = (1 - rule.beta) * p_NK1 + rule.beta * q_NK1

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    loss = {
        "forward_kl": kl(q_NK1, p_NK1),
        "reverse_kl": kl(p_NK1, q_NK1),
        "jensen_shannon": (1 - rule.beta) * kl(p_NK1, m_NK1) + rule.beta * kl(q_NK1, m_NK1),
    }[rule.name]
    torch.testing.assert_close(found.loss, loss)
    inputs = (hidden_ND, head.weight_VD)
    for ours, exact in zip(torch.autograd.grad(found.loss, inputs), torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(ours, exact)


def test_a_teacher_certain_of_its_list_stays_finite() -> None:
    # float32 probabilities that sum to 1 leave a tail of 0, whose logarithm reverse KL would multiply by the student's tail
    hidden_ND, head, _ = setting(2)
    certain = TopKTargets(torch.zeros(TOKENS, 1, dtype=torch.long), torch.zeros(TOKENS, 1))
    for rule in RULES:
        found = compare(hidden_ND, head, certain, rule, torch.ones(TOKENS))
        assert found.loss < 20 * TOKENS  # the tail counts as 2**-23, 16 nats
        assert all(part.isfinite().all() for part in torch.autograd.grad(found.loss, (hidden_ND, head.weight_VD)))


def test_top_k_over_shared_tokens_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LOGIT_ELEMENTS", {"cpu": 2 * VOCABULARY, "cuda": 2 * VOCABULARY})
    _, _, targets = setting(3)
    shared = VOCABULARY - 3
    found = top_k(targets.hidden_ND, targets.head, 2, shared)
    logp_NV = targets.head.logits(targets.hidden_ND)[:, :shared].log_softmax(-1)
    expected = logp_NV.topk(2)
    torch.testing.assert_close(found.logp_NK, expected.values)
    assert found.ids_NK.tolist() == expected.indices.tolist()


@pytest.mark.parametrize("k", [0, VOCABULARY + 1])
def test_k_outside_the_vocabulary(k: int) -> None:
    _, _, targets = setting(4)
    with pytest.raises(ValueError, match="between 1 and the vocabulary of 9"):
        top_k(targets.hidden_ND, targets.head, k)
