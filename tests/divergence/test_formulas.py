"""Divergences: by hand, as true divergences, with checked gradients, at the ends of beta."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.divergence import forward_kl, jensen_shannon, overlap, reverse_kl
from tests.divergence.cases import named

NAMES = ["forward_kl", "reverse_kl", "jensen_shannon"]


def logits(seed: int, rows: int = 3, vocabulary: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * 2


def test_by_hand() -> None:
    # p_S = (1/2, 1/2), p_T = (3/4, 1/4)
    student = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.75, 0.25]], dtype=torch.float64).log()
    # KL(T‖S) = 3/4 ln(3/2) + 1/4 ln(1/2);  KL(S‖T) = 1/2 ln(2/3) + 1/2 ln 2
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert forward_kl(student, teacher).item() == pytest.approx(forward)
    assert reverse_kl(student, teacher).item() == pytest.approx(reverse)
    # m = (5/8, 3/8): half of each KL to it
    to_mixture = 0.5 * (0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)) + 0.5 * (
        0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    )
    assert jensen_shannon(student, teacher, 0.5).item() == pytest.approx(to_mixture)
    # min(1/2, 3/4) + min(1/2, 1/4)
    assert overlap(student, teacher).item() == pytest.approx(0.75)


@pytest.mark.parametrize("name", NAMES)
def test_zero_with_zero_gradient_at_the_teacher(name: str) -> None:
    teacher = logits(0)
    student = (teacher + 3.0).requires_grad_()  # logits are free up to a constant
    value = named(name, 0.3)(student, teacher)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros_like(value))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student.grad))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_finite_differences(name: str) -> None:
    teacher = logits(1)
    assert torch.autograd.gradcheck(lambda student: named(name, 0.3)(student, teacher), logits(2).requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        student = logits(3, rows=5).requires_grad_()
        value = named(name, 0.4)(student, logits(4, rows=5))
        value.sum().backward()
        assert student.grad is not None
        return value.detach(), student.grad

    whole = run()
    monkeypatch.setattr("recoup.divergence.chunks.BLOCK_ELEMENTS", {"cpu": 14, "cuda": 14})  # two rows of seven
    for expected, found in zip(whole, run(), strict=True):
        torch.testing.assert_close(found, expected)


@given(seed=st.integers(0, 1000), beta=st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=50)
def test_never_negative_and_bounded(seed: int, beta: float) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    assert (forward_kl(student, teacher) >= 0).all()
    assert (reverse_kl(student, teacher) >= 0).all()
    entropy = -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta))  # the mixture's own, the upper bound
    shannon = jensen_shannon(student, teacher, beta)
    assert ((shannon >= 0) & (shannon <= entropy)).all()
    assert ((overlap(student, teacher) >= 0) & (overlap(student, teacher) <= 1)).all()


def test_jensen_shannon_tends_to_the_kls() -> None:
    student, teacher, tiny = logits(5), logits(6), 1e-6
    torch.testing.assert_close(
        jensen_shannon(student, teacher, tiny) / tiny, forward_kl(student, teacher), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        jensen_shannon(student, teacher, 1 - tiny) / tiny, reverse_kl(student, teacher), rtol=1e-3, atol=1e-4
    )


def test_impossible_tokens_add_nothing() -> None:
    # a token of probability 0 in both, as a padded head writes
    padded = torch.cat([logits(7), torch.full((3, 2), -math.inf, dtype=torch.float64)], dim=1)
    other = torch.cat([logits(8), torch.full((3, 2), -math.inf, dtype=torch.float64)], dim=1)
    for name in NAMES:
        torch.testing.assert_close(named(name, 0.5)(padded, other), named(name, 0.5)(logits(7), logits(8)))


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
def test_beta_at_an_end_says_what_to_use(beta: float) -> None:
    with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
        jensen_shannon(logits(0), logits(1), beta)
