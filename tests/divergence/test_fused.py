"""The fused divergence: by hand, against float64 autograd for every rule and head, in every type, and its mistakes."""

import math
from dataclasses import replace

import pytest
import torch

from recoup.divergence import Head, HiddenTargets, Rule, TopKTargets, compare, formulas
from tests.divergence.cases import HEADS, RULES, TOKENS, VOCABULARY, Case, assert_as_autograd, case, each_rule, named


def test_two_tokens_by_hand() -> None:
    # Width 1, weight (0, 1): logits (0, h), so p = (1, e^h) / (1 + e^h). h = 0 gives (1/2, 1/2), h = ln 3 gives (1/4, 3/4).
    head = Head(torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True))
    hidden_ND = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64, requires_grad=True)
    # Teacher: (1/4, 3/4), then (1/2, 1/2)
    teacher = HiddenTargets(torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64), Head(head.weight_VD.detach()))
    found = compare(hidden_ND, head, teacher, Rule("forward_kl"), torch.tensor([1.0, 2.0]))
    # KL(T‖S): 1/4 ln(1/2) + 3/4 ln(3/2) = 0.1308;  1/2 ln 2 + 1/2 ln(2/3) = 0.1438
    first, second = 0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert found.per_token_N.tolist() == pytest.approx([first, second])
    assert found.loss.item() == pytest.approx(first + 2 * second)
    found.loss.backward()
    # d/dz = p − q = (1/4, −1/4), then (−1/4, 1/4), twice as heavy
    assert hidden_ND.grad is not None
    assert head.weight_VD.grad is not None
    assert hidden_ND.grad.flatten().tolist() == pytest.approx([-0.25, 0.5])
    # dW = sum_n w_n dz_n h_n: token 0 has h = 0; token 1 gives 2 · ln 3 · (−1/4, 1/4)
    assert head.weight_VD.grad.flatten().tolist() == pytest.approx([-0.5 * math.log(3), 0.5 * math.log(3)])


@each_rule
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("like", HEADS)
def test_values_and_gradients_as_float64_autograd(rule: Rule, like: str, bias: bool) -> None:
    assert_as_autograd(case(like, bias), rule)


@each_rule
def test_gradients_against_finite_differences(rule: Rule) -> None:
    given, step = case("softcap", bias=True), 1e-6
    gradients = torch.autograd.grad(given.compare(rule).loss, given.inputs())
    for tensor, gradient in zip(given.inputs(), gradients, strict=True):
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        with torch.no_grad():
            tensor += step * direction
            ahead = given.compare(rule).loss
            tensor -= 2 * step * direction
            behind = given.compare(rule).loss
            tensor += step * direction
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@each_rule
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(rule: Rule, frozen: str) -> None:
    given = case(bias=True)
    assert given.head.bias_V is not None
    {"hidden": given.hidden_ND, "weight": given.head.weight_VD, "bias": given.head.bias_V}[frozen].requires_grad_(False)
    assert len(given.inputs()) == 2
    assert_as_autograd(given, rule)


@each_rule
def test_a_wider_teacher_vocabulary_is_cut(rule: Rule) -> None:
    given, shared = case(bias=True), VOCABULARY - 4
    assert_as_autograd(given, rule, shared)
    weight_VD = torch.autograd.grad(given.compare(rule, shared).loss, given.head.weight_VD)[0]
    assert not weight_VD[shared:].any()  # rows that are not compared have no gradient, not garbage
    assert weight_VD[:shared].any()
    longer = replace(given.targets.head, weight_VD=torch.cat([given.targets.head.weight_VD] * 2), bias_V=None)
    padded = replace(given, targets=HiddenTargets(given.targets.hidden_ND, longer))
    with pytest.raises(ValueError, match="num_shared"):
        padded.compare(rule)
    assert_as_autograd(padded, rule, shared)


@each_rule
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_with_zero_gradient_at_the_teacher(rule: Rule, kind: torch.dtype) -> None:
    given = case("softcap", bias=True, kind=kind)
    teacher = replace(given.head, weight_VD=given.head.weight_VD.detach())
    found = replace(given, targets=HiddenTargets(given.hidden_ND.detach(), teacher)).compare(rule)
    torch.testing.assert_close(found.per_token_N, torch.zeros(TOKENS), atol=1e-6, rtol=0)
    for gradient in torch.autograd.grad(found.loss, given.inputs()):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("hidden", "head"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)],
)
def test_mixed_types_are_summed_in_float32(hidden: torch.dtype, head: torch.dtype) -> None:
    given = case(bias=True)
    assert given.head.bias_V is not None
    weight_VD, bias_V = (
        tensor.detach().to(head).requires_grad_() for tensor in (given.head.weight_VD, given.head.bias_V)
    )
    mixed = replace(given, hidden_ND=given.hidden_ND.detach().to(hidden).requires_grad_(), head=Head(weight_VD, bias_V))
    double = [tensor.detach().double().requires_grad_() for tensor in mixed.inputs()]
    same = replace(given, hidden_ND=double[0], head=Head(double[1], double[2]))
    for rule in RULES:
        found = torch.autograd.grad(mixed.compare(rule).loss, mixed.inputs())
        for ours, exact in zip(found, torch.autograd.grad(same.compare(rule).loss, double), strict=True):
            torch.testing.assert_close(ours, exact.to(ours.dtype), rtol=2**-7, atol=1e-5)


@each_rule
def test_the_upstream_gradient_multiplies(rule: Rule) -> None:
    given = case()
    once = torch.autograd.grad(given.compare(rule).loss, given.inputs())
    thrice = torch.autograd.grad(given.compare(rule).loss * 3, given.inputs())
    for single, triple in zip(once, thrice, strict=True):
        torch.testing.assert_close(triple, 3 * single)


def test_no_tokens_give_zero() -> None:
    given = case(tokens=0)
    found = given.compare(RULES[0])
    assert found.loss.item() == 0
    assert found.per_token_N.shape == (0,)
    assert not torch.autograd.grad(found.loss, given.head.weight_VD)[0].any()


def test_fused_is_the_logits_divergence() -> None:
    given = case()
    with torch.no_grad():
        student, teacher = given.head.logits(given.hidden_ND), given.targets.head.logits(given.targets.hidden_ND)
    for rule in RULES:
        torch.testing.assert_close(
            given.compare(rule).per_token_N, named(rule.name, rule.beta)(student, teacher).float()
        )


def test_a_padded_token_of_bias_minus_infinity_adds_nothing() -> None:
    given = case(bias=True)
    assert given.head.bias_V is not None
    assert given.targets.head.bias_V is not None
    shared = VOCABULARY - 1
    for rule in RULES:
        expected = given.compare(rule, shared)
        with torch.no_grad():
            student_V, teacher_V = given.head.bias_V.clone(), given.targets.head.bias_V.clone()
            student_V[-1] = teacher_V[-1] = -torch.inf
        padded = replace(
            given,
            head=replace(given.head, bias_V=student_V.requires_grad_()),
            targets=replace(given.targets, head=replace(given.targets.head, bias_V=teacher_V)),
        )
        found = padded.compare(rule)
        torch.testing.assert_close(found.per_token_N, expected.per_token_N)
        assert torch.autograd.grad(found.loss, student_V)[0].isfinite().all()


def test_mistakes_are_named() -> None:
    given = case()
    with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
        Rule("jensen_shannon", 1.0)
    with pytest.raises(ValueError, match="same rollouts"):
        replace(given, targets=HiddenTargets(given.targets.hidden_ND[1:], given.targets.head)).compare(RULES[0])
    with pytest.raises(ValueError, match="cannot share 12"):
        given.compare(RULES[0], VOCABULARY + 1)
    ids_NK = torch.full((TOKENS, 1), VOCABULARY - 1)
    with pytest.raises(ValueError, match="beyond the 10 shared"):
        compare(given.hidden_ND, given.head, TopKTargets(ids_NK, -ids_NK.float()), RULES[0], given.weights_N, 10)


@pytest.mark.gpu
@each_rule
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gpu_finds_the_same(rule: Rule, kind: torch.dtype) -> None:
    given = case("softcap", bias=True, kind=kind)
    expected = torch.autograd.grad(given.compare(rule).loss, given.inputs())

    def moved(head: Head) -> Head:
        assert head.bias_V is not None
        return replace(head, weight_VD=head.weight_VD.cuda(), bias_V=head.bias_V.cuda())

    targets = HiddenTargets(given.targets.hidden_ND.cuda(), moved(given.targets.head))
    there = Case(given.hidden_ND.cuda(), moved(given.head), targets, given.weights_N.cuda())
    found = torch.autograd.grad(there.compare(rule).loss, given.inputs())
    tolerance = 2e-2 if kind == torch.bfloat16 else 1e-4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_formulas_know_every_name() -> None:
    with pytest.raises(KeyError):
        formulas.formula("cosine", 0.5)
