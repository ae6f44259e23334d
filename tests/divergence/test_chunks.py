"""The fused divergence in chunks: nothing changes at any seam, bfloat16 sums stay exact, and nothing is tokens × vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recoup.divergence import Head, HiddenTargets, Rule, chunks, compare
from tests.divergence.cases import (
    RULES,
    TEACHER_WIDTH,
    VOCABULARY,
    WIDTH,
    Case,
    assert_as_autograd,
    by_autograd,
    case,
    each_rule,
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1 token, 2 tokens of logits, 3 of slopes, tiles of 2 rows: every seam is crossed."""
    monkeypatch.setattr(chunks, "BLOCK_ELEMENTS", {"cpu": VOCABULARY, "cuda": VOCABULARY})
    monkeypatch.setattr(chunks, "LOGIT_ELEMENTS", {"cpu": 2 * VOCABULARY, "cuda": 2 * VOCABULARY})
    monkeypatch.setattr(chunks, "SLOPE_ROWS", {"cpu": 3, "cuda": 3})
    monkeypatch.setattr(chunks, "TILE_ELEMENTS", {"cpu": 2 * WIDTH, "cuda": 2 * WIDTH})


@each_rule
@pytest.mark.usefixtures("small_chunks")
def test_chunks_change_nothing(rule: Rule) -> None:
    assert_as_autograd(case("scale and softcap", bias=True, tokens=17), rule)


@pytest.mark.usefixtures("small_chunks")
def test_sums_over_many_chunks_stay_exact_in_bfloat16() -> None:
    # 1,800 equal tokens, 600 additions of 3: a plain bfloat16 sum stops growing by 512 parts, half its last bit
    given = case(kind=torch.bfloat16, tokens=1)
    many = Case(
        given.hidden_ND.detach().expand(1800, WIDTH),
        given.head,
        HiddenTargets(given.targets.hidden_ND.expand(1800, TEACHER_WIDTH), given.targets.head),
        torch.ones(1800),
    )
    one = torch.autograd.grad(replace(given, weights_N=torch.ones(1)).compare(RULES[0]).loss, given.head.weight_VD)[0]
    all_of_them = torch.autograd.grad(many.compare(RULES[0]).loss, given.head.weight_VD)[0]
    torch.testing.assert_close(all_of_them, 1800 * one, rtol=2**-6, atol=0)  # four roundings of 2**-9, and a margin


@each_rule
@pytest.mark.parametrize("several", [False, True], ids=["one chunk", "several"])
def test_bfloat16_gradients_are_half_a_percent_off_at_most(
    rule: Rule, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if several:
        monkeypatch.setattr(chunks, "SLOPE_ROWS", {"cpu": 8, "cuda": 8})
    tokens, width, vocabulary = 96, 64, 512
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, width, generator=generator).bfloat16()
    weight_VD = (torch.randn(vocabulary, width, generator=generator) * 0.4).bfloat16()
    other_VD = (weight_VD.float() + 0.1 * torch.randn(vocabulary, width, generator=generator)).bfloat16()
    weights_N = torch.rand(tokens, generator=generator)

    def gradients(kind: torch.dtype) -> tuple[Tensor, ...]:
        inputs = (hidden_ND.to(kind).requires_grad_(), weight_VD.to(kind).requires_grad_())
        targets = HiddenTargets(hidden_ND.to(kind), Head(other_VD.to(kind)))
        return torch.autograd.grad(compare(inputs[0], Head(inputs[1]), targets, rule, weights_N).loss, inputs)

    before = torch.get_float32_matmul_precision()
    for exact, found in zip(gradients(torch.float64), gradients(torch.bfloat16), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.double() - exact).norm() <= 0.005 * exact.norm()
    assert torch.get_float32_matmul_precision() == before


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.untyped_storage().nbytes() // result.element_size())
        return result


@each_rule
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_chunks")
def test_nothing_of_tokens_times_vocabulary_is_made(rule: Rule, kind: torch.dtype) -> None:
    given = case("softcap", kind=kind, tokens=40)
    with LargestTensor() as seen:
        given.compare(rule).loss.backward()
    head = VOCABULARY * WIDTH  # 44, the head's gradient; all logits would be 40 · 11 = 440
    assert head <= seen.largest <= 40 * TEACHER_WIDTH
    with LargestTensor() as seen:
        by_autograd(given, rule)[0].backward()
    assert seen.largest >= 40 * VOCABULARY  # the check can fail
