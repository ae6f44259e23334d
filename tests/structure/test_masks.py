"""Masks: which weights go, exactly how many, and in which pattern."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.structure.masks import lowest_removed, magnitude_mask, n_of_m, n_of_m_mask, pack, per_output_mask, unpack


def test_two_of_four_by_hand() -> None:
    # of (1, 4, 3, 2) the two highest are 4 and 3; of (0, 0, 0, 5): 5, and of the equal zeros the last, since the first go
    score = torch.tensor([[1.0, 4, 3, 2, 0, 0, 0, 5]])
    assert n_of_m_mask(score, 2, 4).tolist() == [[False, True, True, False, False, False, True, True]]


def test_one_of_three_by_hand() -> None:
    score = torch.tensor([[1.0, 2, 3], [9, 8, 7]])
    assert n_of_m_mask(score, 1, 3).tolist() == [[False, False, True], [True, False, False]]


def test_per_output_by_hand() -> None:
    # half of each row goes, though every score of the first row is below those of the second
    score = torch.tensor([[1.0, 4, 2, 3], [50, 60, 70, 80]])
    assert per_output_mask(score, 0.5).tolist() == [[False, True, False, True], [False, False, True, True]]


def test_magnitude_compares_the_whole_matrix_by_hand() -> None:
    # the two smallest of 1, 4, 60, −70 are both in the first row
    assert magnitude_mask(torch.tensor([[1.0, -4], [60, -70]]), 0.5).tolist() == [[False, False], [True, True]]


def test_a_negative_score_goes_first() -> None:
    assert lowest_removed(torch.tensor([[0.0, -1], [0, 2]]), 2).tolist() == [[False, False], [True, True]]


def test_ties_fall_in_storage_order() -> None:
    equal = torch.ones(2, 4)
    assert magnitude_mask(equal, 0.5).tolist() == [[False] * 4, [True] * 4]
    assert per_output_mask(equal, 0.25).tolist() == [[False, True, True, True]] * 2
    assert n_of_m_mask(equal, 2, 4).tolist() == [[False, False, True, True]] * 2


def test_words_of_patterns() -> None:
    assert n_of_m("unstructured") is None
    assert n_of_m("2:4") == (2, 4)
    assert n_of_m("4:16") == (4, 16)


def test_a_pattern_that_does_not_fit_says_so() -> None:
    with pytest.raises(StructureError, match="a 2:4 mask does not fit 6 inputs; use pattern: unstructured"):
        n_of_m_mask(torch.ones(2, 6), 2, 4)


@given(rows=st.integers(1, 5), groups=st.integers(1, 6), seed=st.integers(0, 999), data=st.data())
@settings(deadline=None, max_examples=60)
def test_patterns_are_met_exactly_and_the_lowest_go(rows: int, groups: int, seed: int, data: st.DataObject) -> None:
    group = data.draw(st.integers(2, 8))
    kept = data.draw(st.integers(1, group - 1))
    score = torch.randint(
        0, 5, (rows, groups * group), generator=torch.Generator().manual_seed(seed)
    ).float()  # with ties
    mask = n_of_m_mask(score, kept, group).view(rows, groups, group)
    assert (mask.sum(-1) == kept).all()
    grouped = score.view(rows, groups, group)
    highest_gone = grouped.where(~mask, -1.0).amax(-1)
    lowest_kept = grouped.where(mask, 9.0).amin(-1)
    assert (highest_gone <= lowest_kept).all()


@given(rows=st.integers(1, 5), inputs=st.integers(1, 12), sparsity=st.floats(0.01, 0.99), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_sparsity_is_met_exactly(rows: int, inputs: int, sparsity: float, seed: int) -> None:
    score = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed))
    assert ((~per_output_mask(score, sparsity)).sum(1) == round(sparsity * inputs)).all()
    assert int((~magnitude_mask(score, sparsity)).sum()) == round(sparsity * rows * inputs)


@given(rows=st.integers(1, 5), inputs=st.integers(1, 20), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_packing_is_undone(rows: int, inputs: int, seed: int) -> None:
    mask = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(unpack(pack(mask), (rows, inputs)), mask)
