"""Damage by place in the completion."""

import pytest
import torch

from recoup.cka import debiased_cka
from recoup.diagnose import layers
from recoup.diagnose.layers import TokenStates
from recoup.diagnose.positions import bins, numbered, position_damage
from recoup.models.sample import Rollouts, pack


def test_bins_widen_fourfold_and_end_with_the_longest() -> None:
    assert bins(1) == [(0, 1)]
    assert bins(4) == [(0, 4)]
    assert bins(5) == [(0, 4), (4, 5)]
    assert bins(64) == [(0, 4), (4, 16), (16, 64)]
    assert bins(65) == [(0, 4), (4, 16), (16, 64), (64, 65)]


def test_completion_tokens_are_numbered_from_zero() -> None:
    """Prompt tokens and pads have no number."""
    rollouts = pack([[5], [6, 7]], [[8, 9, 10], [11, 12]], pad=0)
    assert numbered(rollouts.completion_BT, 1, 3).int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]


def some_states(rollouts: Rollouts, num_blocks: int = 2) -> TokenStates:
    """Random states of every token; first tokens are sinks."""
    generator = torch.Generator().manual_seed(0)
    row_N, column_N = rollouts.attention_BT.nonzero().unbind(1)
    first_BT = rollouts.attention_BT.cumsum(1) == 1

    def drawn() -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(len(row_N), 5, generator=generator) for _ in range(num_blocks))

    place_N = row_N * rollouts.tokens_BT.shape[1] + column_N
    first_N = first_BT[rollouts.attention_BT]
    return TokenStates(drawn(), drawn(), first_N, torch.zeros_like(first_N), row_N, place_N)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions of 6 and 5 tokens: 4 + 4 tokens in the first bin, 2 + 1 in the second.

    KL is the token's number plus ten times its rollout's: (0+1+2+3 + 10+11+12+13)/8 = 6.5, and (4 + 5 + 14)/3 = 23/3.
    States are those before the tokens: in rows without pads (prompt 2), places 1 to 4 of 0 to 7 for the first bin.
    """
    monkeypatch.setattr(layers, "MIN_TOKENS", 4)
    rollouts = pack([[5, 6], [7, 8]], [[1] * 6, [2] * 5], pad=0)
    kl_N = torch.tensor([0.0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14])
    states = some_states(rollouts)
    first, second = position_damage(rollouts, kl_N, states)
    assert (first.start, first.end, first.num_tokens, first.token_kl_nats) == (0, 4, 8, 6.5)
    assert (second.start, second.end, second.num_tokens) == (4, 6, 3)
    assert second.token_kl_nats == pytest.approx(23 / 3)
    assert second.mean_cka is None  # 3 tokens
    predicts = [1, 2, 3, 4, 9, 10, 11, 12]  # the second rollout begins at 8
    values = [debiased_cka(X[predicts], Y[predicts]) for X, Y in zip(states.student, states.teacher, strict=True)]
    assert first.mean_cka == pytest.approx(sum(values) / 2, abs=1e-6)


def test_a_sink_predicts_but_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of one token: the first completion token is predicted by the sink; KL counts it, CKA does not."""
    monkeypatch.setattr(layers, "MIN_TOKENS", 6)
    rollouts = pack([[5], [6]], [[1] * 4, [2] * 4], pad=0)
    (only,) = position_damage(rollouts, torch.ones(8), some_states(rollouts))
    assert only.num_tokens == 8
    assert only.mean_cka is not None  # 2 × 3 tokens
    monkeypatch.setattr(layers, "MIN_TOKENS", 7)
    (only,) = position_damage(rollouts, torch.ones(8), some_states(rollouts))
    assert only.mean_cka is None
