"""The parts of a step, by hand."""

from collections import Counter

import pytest
import torch

from recoup.config import Bootstrap
from recoup.data.prompts import Prompt
from recoup.models.sample import pack
from recoup.recover.bootstrap import Phase
from recoup.recover.rollout import prompts_of_step, seed_of, shares
from recoup.recover.schedule import scored_tokens

ROLLOUTS = pack([[1, 2], [3]], [[4, 5, 6], [7]], pad=0)


def test_layout_of_rollouts() -> None:
    assert ROLLOUTS.tokens_BT.tolist() == [[1, 2, 4, 5, 6], [0, 3, 7, 0, 0]]
    assert ROLLOUTS.attention_BT.int().tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert ROLLOUTS.completion_BT.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]


def test_first_tokens_are_skipped_per_completion() -> None:
    # completions of 3 tokens and 1 token; without their first: 2 and none
    assert scored_tokens(ROLLOUTS, 0).tolist() == [True, True, True, True]
    assert scored_tokens(ROLLOUTS, 1).tolist() == [False, True, True, False]
    assert not scored_tokens(ROLLOUTS, 3).any()


def test_every_prompt_comes_once_a_pass() -> None:
    prompts = [Prompt(str(i), (i,)) for i in range(10)]
    seen = Counter(p.text for step in range(5) for p in prompts_of_step(prompts, step, 4, seed=3))
    assert set(seen.values()) == {2}  # 5 steps of 4 are 2 passes over 10
    assert prompts_of_step(prompts, 1, 4, 3) == prompts_of_step(prompts, 1, 4, 3)
    assert prompts_of_step(prompts, 0, 10, 3) != prompts_of_step(prompts, 0, 10, 4)


def test_shares_are_even_over_time() -> None:
    assert shares(4, 2, 0) == [2, 2]
    assert [shares(1, 3, step) for step in range(3)] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert torch.tensor([shares(7, 3, step) for step in range(3)]).sum(0).tolist() == [7, 7, 7]


def test_seeds_differ_by_place_and_order() -> None:
    assert len({seed_of(0, 1), seed_of(1, 0), seed_of(0, 2), seed_of(0, 1, 0)}) == 4


RULE = Bootstrap(overlap=0.6, check_every=5, max_steps=12)


@pytest.mark.parametrize(("step", "measures"), [(0, True), (4, False), (5, True), (12, False)])
def test_overlap_is_measured_only_where_it_decides(step: int, measures: bool) -> None:
    assert Phase().must_measure(RULE, step) is measures
    assert not Phase(on_policy_from=0).must_measure(RULE, step)


def test_the_rule() -> None:
    assert Phase().after(RULE, 5, 0.59).on_policy_from is None
    assert Phase().after(RULE, 5, 0.6).on_policy_from == 5
    assert Phase().after(RULE, 12, None).on_policy_from == 12
    assert Phase(3).after(RULE, 12, 0.1).on_policy_from == 3
    assert Phase().after(Bootstrap(overlap=0), 0, None).on_policy_from == 0
