"""A checkpoint's rollouts are one batch, whoever held them, and are dealt out to any number of processes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recoup.models.sample import Rollouts, pack
from recoup.recover.buffer import named_tensors, parts_of
from recoup.recover.dealing import dealt, together
from recoup.training.processes import Processes

PAD = 0


def packed(rows: list[tuple[list[int], list[int]]], logp: float | None = None) -> Rollouts:
    prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    logps = None if logp is None else [[-logp * token for token in answer] for answer in answers]
    return pack(prompts, answers, PAD, logps=logps)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_three_rows_of_two_processes_by_hand() -> None:
    a, b, c = ([1, 2, 3], [4]), ([5], [6, 7]), ([8], [9, 9, 9])
    first, second = named_tensors({(4, 0): packed([a, c])}), named_tensors({(4, 0): packed([b])})
    whole = together([first, second], PAD)
    assert whole["4.0.tokens_BT"].tolist() == [[1, 2, 3, 4, 0, 0], [0, 0, 5, 6, 7, 0], [0, 0, 8, 9, 9, 9]]
    assert same(dealt(whole, Processes(0, 2)), first)
    assert same(dealt(whole, Processes(1, 2)), second)
    assert same(dealt(whole, Processes(2, 3)), named_tensors({(4, 0): packed([c])}))
    assert dealt(whole, Processes(3, 4)) == {}  # more processes than rows
    assert same(dealt(whole, Processes()), whole)


def test_a_term_that_a_process_has_no_row_of() -> None:
    a, b, c = ([1], [2]), ([3], [4]), ([5], [6])
    shares = [named_tensors({(0, 0): packed([a]), (0, 1): packed([b])}), named_tensors({(0, 1): packed([c])})]
    whole = parts_of(together(shares, PAD))
    assert whole[0, 0].tokens_BT.tolist() == [[1, 2]]
    assert whole[0, 1].tokens_BT.tolist() == [[3, 4], [5, 6]]


tokens = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=7), st.integers(1, 4), st.booleans())
def test_dealing_out_and_collecting_is_nothing(
    rows: list[tuple[list[int], list[int]]], number: int, with_logp: bool
) -> None:
    whole = named_tensors({(2, 0): packed(rows, 0.1 if with_logp else None)})
    shares = [dealt(whole, Processes(rank, number)) for rank in range(number)]
    assert same(together(shares, PAD), whole)
