"""Collapse of the student's own writing: counts by hand, and a watch that neither sleeps nor cries wolf."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.config import Guards
from recoup.models.sample import pack
from recoup.recover.collapse import Tally, Vitals, Watch, tally

RULE = Guards(min_length=0.25, max_repetition=0.6, min_entropy=0.1, window=2)
FINE = Vitals(length=20.0, repetition=0.1, entropy=2.0)
Completions = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)


def watched(*steps: Vitals, rule: Guards = RULE) -> Watch:
    watch = Watch()
    for number, vitals in enumerate(steps):
        watch = watch.after(rule, number, vitals)
    return watch


def test_vitals_by_hand() -> None:
    rollouts = pack([[1, 2], [3]], [[7] * 6, [4]], pad=0)
    logp_BT = torch.full(rollouts.tokens_BT.shape, -99.0)  # only completion tokens may count
    logp_BT[0, 2:8] = torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.0, -3.0])
    logp_BT[1, 2] = -2.0
    # lengths 6 and 1, clipped at 5: (5 + 1) / 2 = 3; 2 of 3 4-grams; (12 + 2) / 7 tokens = 2 nats
    assert tally(rollouts, logp_BT, cap=5).vitals() == Vitals(3.0, 2 / 3, 2.0)
    assert tally(rollouts, None, cap=5).vitals() == Vitals(3.0, 2 / 3, None)
    short = tally(pack([[1]], [[2, 3]], pad=0), None, cap=5)
    assert short.vitals().repetition == 0  # two tokens hold no 4-gram: nothing to divide by


@settings(max_examples=30, deadline=None)
@given(Completions, Completions, st.integers(1, 12))
def test_tallies_of_parts_add_up(left: list[list[int]], right: list[list[int]], cap: int) -> None:
    parts = [pack([[1]] * len(part), part, pad=0) for part in (left, right, [*left, *right])]
    one, other, both = (tally(part, -part.tokens_BT.float(), cap) for part in parts)
    assert one + other == both
    assert one + Tally() == one


def test_processes_agree_on_the_sum_of_their_tallies() -> None:
    mine, theirs = Tally(1.0, 6.0, 3.0, 2.0, 6.0, 12.0), Tally(2.0, 3.0, 0.0, 0.0, 3.0, 1.5)

    def add_up(numbers: Sequence[float]) -> list[float]:
        return [number + other for number, other in zip(numbers, (2.0, 3.0, 0.0, 0.0, 3.0, 1.5), strict=True)]

    assert mine.over(add_up) == mine + theirs == Tally(3.0, 9.0, 3.0, 2.0, 9.0, 13.5)


def test_surprisal_of_draws_is_the_entropy() -> None:
    # p = 1/2, 1/4, 1/4: H = 1/2 ln 2 + 2 · 1/4 ln 4 = 1.5 ln 2; one draw has variance ln²2 / 4, so 20,000 have sd 0.0025
    p_V = torch.tensor([0.5, 0.25, 0.25])
    drawn_BT = torch.multinomial(p_V.expand(2000, 3), 10, replacement=True, generator=torch.Generator().manual_seed(0))
    rollouts = pack([[1]] * 2000, drawn_BT.tolist(), pad=0)
    entropy = tally(rollouts, p_V.log()[rollouts.tokens_BT], cap=10).vitals().entropy
    assert entropy == pytest.approx(1.5 * math.log(2), abs=0.01)


@pytest.mark.parametrize(
    ("vitals", "says"),
    [
        # 25% of 20 tokens is 5; 10% of 2 nats is 0.2
        (replace(FINE, length=5.0), None),
        (replace(FINE, length=4.9), "mean completion length .* is 4.9 tokens, 24.5% of the first .* 20; guards.min_length allows 25%"),
        (replace(FINE, entropy=0.2), None),
        (replace(FINE, entropy=0.1), "mean entropy .* is 0.1 nats, 5.0% of the first .* 2; guards.min_entropy allows 10%"),
        (replace(FINE, repetition=0.6), None),
        (replace(FINE, repetition=0.61), "61.0% of 4-grams repeat .*; guards.max_repetition allows 60%"),
        (replace(FINE, entropy=math.nan), "mean entropy .* is nan nats"),
        (replace(FINE, entropy=None), None),
    ],
)  # fmt: skip
def test_bounds(vitals: Vitals, says: str | None) -> None:
    verdict = watched(FINE, FINE, vitals, vitals).verdict(RULE)
    if says is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert re.search(says, verdict)
        assert "over the 2 steps up to step 3" in verdict
        assert "\n" not in verdict


def test_one_bad_step_is_averaged_out() -> None:
    empty = replace(FINE, length=1.0)
    assert watched(FINE, FINE, empty).verdict(RULE) is None  # (20 + 1) / 2 = 10.5 of 20
    assert watched(FINE, FINE, empty, empty).verdict(RULE) is not None  # 1 of 20


def test_answers_that_are_short_by_nature_are_no_collapse() -> None:
    short = Vitals(2.0, 0.0, 0.01)
    assert watched(*[short] * 9).verdict(RULE) is None


def test_a_student_that_repeats_from_the_start_is_judged_by_the_best_it_was() -> None:
    """Half-way to repeating everything is allowed: 0.95 after 0.9, 0.75 after 0.5, and the rule's own 0.6 after 0.2."""
    looping, half, well = (replace(FINE, repetition=share) for share in (0.9, 0.5, 0.2))
    assert watched(*[looping] * 6).verdict(RULE) is None
    assert watched(half, half, replace(FINE, repetition=0.75), replace(FINE, repetition=0.75)).verdict(RULE) is None
    verdict = watched(half, half, looping, looping).verdict(RULE)
    assert verdict is not None
    assert "at best 50.0% did; guards.max_repetition allows 75%" in verdict
    assert watched(looping, looping, well, well, looping, looping).verdict(RULE) is not None
    assert (
        watched(looping, looping, replace(FINE, repetition=1.0), replace(FINE, repetition=1.0)).verdict(RULE)
        is not None
    )


def test_nothing_is_said_before_a_window_is_full_or_where_unguarded() -> None:
    dead = Vitals(0.0, 1.0, 0.0)
    assert watched(dead).verdict(RULE) is None
    unguarded = Guards(min_length=0, max_repetition=1, min_entropy=0, window=1)
    assert watched(FINE, dead, dead, rule=unguarded).verdict(unguarded) is None


def test_a_watch_survives_a_checkpoint_and_a_step_taken_twice() -> None:
    watch = watched(FINE, replace(FINE, entropy=None), replace(FINE, length=1 / 3))
    again = Watch.from_dict(json.loads(json.dumps(watch.to_dict())))
    assert again == watch
    assert again.after(RULE, 2, Vitals(0.0, 1.0, 0.0)) == watch
    assert again.after(RULE, 3, FINE) == watch.after(RULE, 3, FINE) != watch
    assert Watch.from_dict(json.loads(json.dumps(Watch().to_dict()))) == Watch()
