"""Weights of terms and tokens, and lengths allowed: by hand, and the same however a batch is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.config import Rollout, Term
from recoup.models.logits import batches
from recoup.models.sample import pack
from recoup.recover.schedule import (
    TokenWeights,
    allowed_tokens,
    relative_weights,
    scored_tokens,
    step_weights,
    term_shares,
    total_weight,
    weight_at,
)

ROLLOUTS = pack([[1, 2], [3], [4]], [[4, 5, 6], [7], [8, 9]], pad=0)
Lengths = st.lists(st.integers(1, 6), min_size=1, max_size=8)
Kind = st.sampled_from(["uniform", "by_rollout"])


def test_a_terms_weight_is_linear_in_the_step() -> None:
    term = Term(weight=1.0, final_weight=3.0)
    assert [weight_at(term, step, 5) for step in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert weight_at(Term(weight=0.7), 3, 5) == 0.7
    assert weight_at(term, 0, 1) == 1.0  # a run of one step


def test_lengths_grow_from_short_to_long() -> None:
    growing = Rollout(start_tokens=16, max_tokens=64, grow_until=0.5)
    # 100 steps: 50 to grow by 48 tokens; at step 25 half of them
    assert [allowed_tokens(growing, step, 100) for step in (0, 25, 49, 50, 99)] == [16, 40, 63, 64, 64]
    assert allowed_tokens(Rollout(max_tokens=64), 0, 100) == 64
    assert allowed_tokens(Rollout(start_tokens=16, max_tokens=64, grow_until=0), 0, 100) == 64


@given(st.integers(1, 50), st.integers(0, 50), st.floats(0, 1), st.integers(1, 40))
def test_lengths_never_shrink_and_stay_inside(start: int, more: int, until: float, steps: int) -> None:
    rule = Rollout(start_tokens=start, max_tokens=start + more, grow_until=until)
    lengths = [allowed_tokens(rule, step, steps) for step in range(steps)]
    assert lengths == sorted(lengths)
    assert set(lengths) <= set(range(start, start + more + 1))


def test_shares_of_terms() -> None:
    assert term_shares([1.0, 3.0], [10.0, 2.0]) == (0.25, 0.75)
    assert term_shares([1.0, 3.0, 1.0], [10.0, 0.0, 2.0]) == (
        0.5,
        0.0,
        0.5,
    )  # a term with nothing to score leaves its share
    assert term_shares([1.0], [0.0]) == (0.0,)
    assert term_shares([0.0, 2.0], [5.0, 5.0]) == (0.0, 1.0)


def test_token_weights_by_hand() -> None:
    # completions of 3, 1 and 2 tokens; without the first of each: 2, 0 and 1
    assert scored_tokens(ROLLOUTS, 1).tolist() == [False, True, True, False, False, True]
    assert relative_weights(ROLLOUTS, 1, "uniform").tolist() == [0, 1, 1, 0, 0, 1]
    assert relative_weights(ROLLOUTS, 1, "by_rollout").tolist() == [0, 0.5, 0.5, 0, 0, 1]
    assert (total_weight(ROLLOUTS, 1, "uniform"), total_weight(ROLLOUTS, 1, "by_rollout")) == (3, 2)
    assert relative_weights(ROLLOUTS, 3, "by_rollout").tolist() == [0] * 6
    assert total_weight(ROLLOUTS, 3, "by_rollout") == 0


@settings(max_examples=40, deadline=None)
@given(Lengths, st.integers(0, 3), Kind, st.integers(1, 8))
def test_any_cut_of_a_batch_weighs_the_same(lengths: list[int], skip: int, kind: TokenWeights, size: int) -> None:
    whole = pack([[1]] * len(lengths), [[2] * n for n in lengths], pad=0)
    total = total_weight(whole, skip, kind)
    expected_N = step_weights(relative_weights(whole, skip, kind), 0.3, total)
    parts = [step_weights(relative_weights(part, skip, kind), 0.3, total) for part in batches(whole, size)]
    assert torch.equal(torch.cat(parts), expected_N)
    assert sum(total_weight(part, skip, kind) for part in batches(whole, size)) == total
    assert float(expected_N.sum()) == pytest.approx(0.3 if total else 0.0, abs=1e-6)


def test_every_rollout_counts_the_same_by_rollout() -> None:
    weights_N = step_weights(relative_weights(ROLLOUTS, 0, "by_rollout"), 1.0, 3.0)
    sums = [float(part.sum()) for part in weights_N.split([3, 1, 2])]
    assert sums == pytest.approx([1 / 3] * 3)


def test_importance_weights_multiply_after_the_normalisation() -> None:
    relative_N, importance_N = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 2.0, torch.inf])
    # share 1 over a total of 2: 0.5 each, then times 0.5 and 2; what is not scored stays 0 whatever its ratio
    assert step_weights(relative_N, 1.0, 2.0, importance_N).tolist() == [0.25, 1.0, 0.0]
