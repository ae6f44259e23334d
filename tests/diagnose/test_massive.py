"""Sink tokens and massive dimensions, by hand."""

import pytest
import torch

from recoup.diagnose.massive import massive_dims, sink_tokens, variance_share


def test_sinks_are_first_tokens_and_those_long_after_most_blocks() -> None:
    """Width 1. Row 0: a pad, then 1, 2, 3, −40, 2: median 2, and 40 is 20 times that. Row 1: all about 5.

    After one more block without long tokens, 40 was long after half of the blocks only; after a third where it is, after most.
    """
    attention_BT = torch.ones(2, 6, dtype=torch.bool)
    attention_BT[0, 0] = False
    long = torch.tensor([[9e9, 1, 2, 3, -40, 2], [5, 5, 6, 5, 4, 7]])[..., None]
    even = torch.ones(2, 6, 1)
    first, both = [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert sink_tokens([long], attention_BT).int().tolist() == both
    assert sink_tokens([long, even], attention_BT).int().tolist() == first
    assert sink_tokens([long, even, long.bfloat16()], attention_BT).int().tolist() == both


def test_a_tokens_own_sequence_decides() -> None:
    """Tokens of length 12 beside a sequence of 1s are not long: each is measured by its own sequence."""
    states_BTD = torch.tensor([[1.0, 1, 1, 1], [12, 12, 12, 12]])[..., None]
    alone = sink_tokens([states_BTD[1:]], torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(sink_tokens([states_BTD], torch.ones(2, 4, dtype=torch.bool))[1:], alone)
    assert alone.int().tolist() == [[1, 0, 0, 0]]


def test_massive_dimensions() -> None:
    """Median magnitude 1: 301 is massive, whatever its sign, and 300 is not."""
    states_ND = torch.ones(4, 5)
    states_ND[2, 1], states_ND[0, 3], states_ND[3, 4] = -301, 300, 1000
    assert massive_dims(states_ND) == (1, 4)
    assert massive_dims(torch.ones(4, 5)) == ()


def test_share_of_variance() -> None:
    """Columns ±1 and ±3: variances as 1 to 9, the second has nine tenths; a constant column has nothing."""
    states_ND = torch.tensor([[1.0, 3.0, 7.0], [-1.0, -3.0, 7.0]])
    assert variance_share(states_ND, (1,)) == pytest.approx(0.9)
    assert variance_share(states_ND, (1, 2)) == pytest.approx(0.9)
    assert variance_share(states_ND, ()) == 0
