"""Damage by group: sums by hand, and parts that make up the whole."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.data.prompts import Prompt
from recoup.diagnose.groups import UNGROUPED, group_damage
from recoup.evaluate.fidelity import TokenValues


def values(counts: Sequence[int], kl: Sequence[float]) -> TokenValues:
    kl_N = torch.tensor(kl, dtype=torch.float64)
    row_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return TokenValues(
        num_prompts=len(counts),
        row_N=row_N,
        kl_N=kl_N,
        agrees_N=kl_N < 1,
        reference_nll_N=kl_N / 2,
        student_nll_N=kl_N * 2,
        student_token_N=torch.zeros_like(row_N),
    )


def prompts(groups: Sequence[str | None]) -> list[Prompt]:
    return [Prompt(f"prompt {row}", (1, 2), group=group) for row, group in enumerate(groups)]


def test_by_hand() -> None:
    """Prompts 0 and 2 are maths with tokens 0.5, 0.5 and 2; prompt 1 has no group: 4; prompt 3 is code: 0, 3."""
    asked: list[Sequence[int]] = []

    def mean_cka(rows: Sequence[int]) -> float | None:
        asked.append(rows)
        return None if len(rows) == 1 else 0.75

    groups = prompts(["maths", None, "maths", "code"])
    found = group_damage(groups, values([2, 1, 1, 2], [0.5, 0.5, 4, 2, 0, 3]), mean_cka, num_bootstrap=200, seed=0)
    assert [group.group for group in found] == ["code", "maths", UNGROUPED]
    assert asked == [[3], [0, 2], [1]]
    code, maths, ungrouped = found
    assert (code.tokens.num_prompts, code.tokens.num_tokens, code.mean_cka) == (1, 2, None)
    assert (maths.tokens.num_prompts, maths.tokens.num_tokens, maths.mean_cka) == (2, 3, 0.75)
    assert (code.tokens.token_kl_nats.value, maths.tokens.token_kl_nats.value) == (1.5, 1.0)
    assert ungrouped.tokens.token_kl_nats.value == 4
    assert code.tokens.top1_agreement.value == 1 / 2
    assert maths.tokens.top1_agreement.value == pytest.approx(2 / 3)
    # maths: both prompts once: 1; the first twice: 0.5; the second twice: 2
    assert (maths.tokens.token_kl_nats.low, maths.tokens.token_kl_nats.high) == (0.5, 2)
    # mean −log p of maths: reference (0.25 + 0.25 + 1) / 3 = 0.5, student (1 + 1 + 4) / 3 = 2
    assert maths.tokens.reference_perplexity == pytest.approx(2.718281828459045**0.5)
    assert maths.tokens.student_perplexity == pytest.approx(2.718281828459045**2)


@pytest.mark.parametrize("groups", [[None, None], ["maths", "maths"]])
def test_one_group_is_the_whole(groups: list[str | None]) -> None:
    assert group_damage(prompts(groups), values([1, 1], [1, 2]), lambda _: None, num_bootstrap=5, seed=0) == ()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 4)), min_size=2, max_size=8))
def test_groups_make_up_the_whole(drawn: list[tuple[str | None, int]]) -> None:
    counts = [count for _, count in drawn]
    whole = values(counts, torch.arange(sum(counts)).tolist())
    asked = prompts([group for group, _ in drawn])
    parts = [group.tokens for group in group_damage(asked, whole, lambda _: None, num_bootstrap=2, seed=0)]
    if parts:
        damage = whole.damage(num_bootstrap=2, seed=0)
        assert sum(part.num_prompts for part in parts) == damage.num_prompts
        assert sum(part.num_tokens for part in parts) == damage.num_tokens
        assert sum(part.token_kl_nats.value * part.num_tokens for part in parts) == pytest.approx(sum(whole.kl_N))
