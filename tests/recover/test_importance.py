"""Importance weights and the log-probabilities they are made of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.divergence import Head
from recoup.models.hidden import completion_hidden, head_of
from recoup.models.load import load
from recoup.models.logits import completion_tokens
from recoup.models.sample import pack
from recoup.recover import importance
from recoup.recover.importance import completion_logp, effective_share, importance_weights

LOGP = st.floats(min_value=-30, max_value=0)


def test_weights_are_the_truncated_ratio() -> None:
    student = torch.log(torch.tensor([0.5, 0.1, 0.9, 0.2]))
    sampler = torch.log(torch.tensor([0.25, 0.2, 0.1, 0.2]))
    # ratios 2, 1/2, 9, 1; the cap of 3 cuts the third
    torch.testing.assert_close(importance_weights(student, sampler, 3.0), torch.tensor([2.0, 0.5, 3.0, 1.0]))


@given(st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=20), st.floats(0.1, 10))
def test_weights_stay_within_the_cap_and_are_one_for_the_same_writer(pairs: list, cap: float) -> None:
    student, sampler = torch.tensor(pairs).T
    weights = importance_weights(student, sampler, cap)
    assert bool(((weights >= 0) & (weights <= torch.tensor(cap))).all())
    same = importance_weights(student, student, max(cap, 1.0))
    assert torch.equal(same, torch.ones_like(same))


def test_weights_make_the_samplers_mean_the_students_mean() -> None:
    """sum_v q(v) (p(v) / q(v)) f(v) = sum_v p(v) f(v): untruncated weights are unbiased."""
    p, q, f = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5]), torch.tensor([1.0, -2.0, 5.0])
    weights = importance_weights(p.log(), q.log(), 1e9)
    torch.testing.assert_close((q * weights * f).sum(), (p * f).sum())


def test_weights_pass_no_gradient() -> None:
    logp = torch.zeros(2, requires_grad=True)
    assert not importance_weights(logp, torch.zeros(2), 2.0).requires_grad


@pytest.mark.parametrize(
    ("weights", "share"),
    [([1.0, 1.0, 1.0], 1.0), ([0.0, 5.0, 0.0, 0.0], 0.25), ([1.0, 3.0], 16 / 20), ([0.0, 0.0], 0.0)],
    # (1 + 3)^2 / (2 (1 + 9)) = 16 / 20
)
def test_effective_share_by_hand(weights: list[float], share: float) -> None:
    assert effective_share(torch.tensor(weights)) == pytest.approx(share)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.1, 10))
def test_effective_share_ignores_scale_and_lies_between_one_token_and_all(weights: list[float], scale: float) -> None:
    share = effective_share(torch.tensor(weights))
    assert 1 / len(weights) - 1e-6 <= share <= 1 + 1e-6
    assert effective_share(torch.tensor(weights) * scale) == pytest.approx(share, rel=1e-4)


def test_completion_logp_by_hand() -> None:
    # width 1, hidden 2, head (0, ln 2 / 2): logits (0, ln 2); at temperature 1 the chances are 1/3 and 2/3
    head = Head(torch.tensor([[0.0], [math.log(2) / 2]]))
    hidden = torch.tensor([[2.0], [2.0]])
    found = completion_logp(hidden, head, torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.log(torch.tensor([1 / 3, 2 / 3])))
    # at temperature 1/2 the logits double: (0, ln 4), chances 1/5 and 4/5
    found = completion_logp(hidden, head, torch.tensor([0, 1]), 0.5)
    torch.testing.assert_close(found, torch.log(torch.tensor([1 / 5, 4 / 5])))


def test_completion_logp_in_chunks_is_that_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = Head(torch.randn(11, 5), torch.randn(11), scale=0.5, softcap=3.0)
    hidden, tokens = torch.randn(10, 5), torch.randint(11, (10,))
    expected = torch.log_softmax(head.logits(hidden) / 0.7, -1).gather(1, tokens[:, None])[:, 0]
    monkeypatch.setattr(importance, "CHUNK_TOKENS", 3)
    rows: list[int] = []
    logits = Head.logits

    def counted(self: Head, part: torch.Tensor) -> torch.Tensor:
        rows.append(len(part))
        return logits(self, part)

    monkeypatch.setattr(Head, "logits", counted)
    torch.testing.assert_close(completion_logp(hidden, head, tokens, 0.7), expected)
    assert rows == [3, 3, 3, 1]


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_completion_logp_is_the_models_own(tiny_models: dict, layout: str) -> None:
    model = load(str(tiny_models[layout]))
    rollouts = pack([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]], 258)
    found = completion_logp(
        completion_hidden(model.model, rollouts), head_of(model.model), completion_tokens(rollouts), 0.8
    )
    whole = torch.tensor([[8, 11, 12, 13]])  # the second rollout alone, no padding
    logp = torch.log_softmax(model.model(whole).logits[0] / 0.8, -1)
    expected = torch.stack([logp[0, 11], logp[1, 12], logp[2, 13]])
    torch.testing.assert_close(found[2:], expected, atol=1e-4, rtol=1e-4)
