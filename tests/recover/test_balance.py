"""Terms balanced by gradient norm."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.recover.balance import Balance, Ratio, norm, squared_norm

Positive = st.floats(0.5, 4)  # at most 8 apart: inside the bounds


def test_norm_of_a_token_by_hand() -> None:
    grad_ND = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    weights_N = torch.tensor([0.5, 0.25, 0.0])
    # without their weights (6, 8) and (0, 8), of length 10 and 8: 0.5 · 100 + 0.25 · 64 = 66, over 0.75
    assert squared_norm(grad_ND, weights_N) == (66.0, 0.75)
    assert norm(66.0, 0.75) == pytest.approx(math.sqrt(88))
    assert norm(*squared_norm(grad_ND, torch.zeros(3))) is None


def test_norm_knows_no_share_and_no_cut() -> None:
    torch.manual_seed(0)
    per_token_ND, weights_N = torch.randn(6, 3), torch.rand(6)
    whole = squared_norm(per_token_ND * weights_N[:, None], weights_N)
    parts = [
        squared_norm((per_token_ND * weights_N[:, None])[rows], weights_N[rows]) for rows in (slice(2), slice(2, 6))
    ]
    assert tuple(map(sum, zip(*parts, strict=True))) == pytest.approx(whole)
    smaller = squared_norm(per_token_ND * weights_N[:, None] * 0.01, weights_N * 0.01)
    assert norm(*smaller) == pytest.approx(norm(*whole), rel=1e-5)


def test_factors_by_hand() -> None:
    # norms 1 and 4, geometric mean 2: factors 2 and 1/2, both norms 2
    assert Balance.start(2).after([1.0, 4.0]).factors([1.0, 1.0]) == pytest.approx((2.0, 0.5))
    # weights 3 to 1: ln G = (3 · 0 + 1 · ln 4) / 4, G = √2
    assert Balance.start(2).after([1.0, 4.0]).factors([3.0, 1.0]) == pytest.approx((math.sqrt(2), math.sqrt(2) / 4))


@given(st.lists(st.tuples(Positive, Positive), min_size=1, max_size=4))
def test_norms_stand_as_the_weights_do(terms: list[tuple[float, float]]) -> None:
    weights, norms = [w for w, _ in terms], [g for _, g in terms]
    factors = Balance.start(len(terms)).after(norms).factors(weights)
    per_weight = [f * g for f, g in zip(factors, norms, strict=True)]
    assert per_weight == pytest.approx([per_weight[0]] * len(terms))
    assert sum(w * math.log(f) for w, f in zip(weights, factors, strict=True)) == pytest.approx(0, abs=1e-9)


def test_factors_are_bounded_and_start_at_one() -> None:
    assert Balance.start(2).factors([1.0, 1.0]) == (1.0, 1.0)
    assert Balance.start(2).after([1e-6, 1.0]).factors([1.0, 1.0]) == pytest.approx((10.0, 0.1))
    assert Balance.start(2).after([None, 5.0]).factors([1.0, 1.0]) == (1.0, 1.0)  # alone it is its own mean
    assert Balance.start(2).after([1.0, 4.0]).factors([0.0, 0.0]) == (1.0, 1.0)


def test_average_moves_slowly_and_ignores_what_says_nothing() -> None:
    start = Balance.start(2).after([1.0, 1.0])
    # ln: 0.9 · 0 + 0.1 · ln 100; half of that from the mean: 100^0.05 = 1.2589
    assert start.after([100.0, 1.0]).factors([1.0, 1.0])[1] == pytest.approx(100**0.05)
    assert start.after([0.0, math.inf]) == start.after([math.nan, None]) == start
    late = start
    for _ in range(200):
        late = late.after([4.0, 1.0])
    assert late.factors([1.0, 1.0]) == pytest.approx((0.5, 2.0))


def test_a_balance_survives_a_checkpoint() -> None:
    balance = Balance.start(3).after([0.1, None, 3.3]).after([0.7, None, None])
    assert Balance.from_dict(json.loads(json.dumps(balance.to_dict()))) == balance


def test_ratio_by_hand() -> None:
    assert Ratio().factor() == 1
    first = Ratio().after(2.0, 0.05)
    assert first.factor() == pytest.approx(40)  # 2 / 0.05
    # 0.9 ln 40 + 0.1 ln 10
    assert first.after(1.0, 0.1).factor() == pytest.approx(40**0.9 * 10**0.1)
    # no term, a negative one (debiased CKA above 1), no divergence, no number: the average stays
    for divergence, beside in ((1.0, 0.0), (1.0, -0.1), (0.0, 0.1), (math.nan, 0.1), (1.0, math.nan)):
        assert first.after(divergence, beside) == first
    assert Ratio().after(1.0, 1e-9).factor() == pytest.approx(100)
    assert Ratio().after(1e-9, 1.0).factor() == pytest.approx(0.01)


@given(st.floats(0.01, 10), st.floats(0.02, 2), st.floats(0.01, 100))
def test_ratio_makes_the_term_as_large_as_the_divergence(divergence: float, beside: float, unit: float) -> None:
    ratio = Ratio().after(divergence * unit, beside * unit)
    assert ratio.factor() * beside == pytest.approx(max(min(divergence, 100 * beside), beside / 100))
