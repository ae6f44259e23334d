"""Choices on scores made by hand, then what they must hold on chance alone."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recoup.errors import DataError
from recoup.history.choose import choose, compared, halves, lost_share
from recoup.history.score import LOG_PROBABILITY
from recoup.results import TaskItems

Items = Callable[..., TaskItems]
RIGHT, WRONG = (1.0,) * 20, (0.0,) * 20


def test_the_best_and_what_it_gains(items: Items) -> None:
    # McNemar: 20 items right that the student gets wrong: p = 2 / 2^20; Holm over 2 checkpoints and 2 capabilities is 4 times that
    student = [items(*WRONG, task="maths"), items(*RIGHT, task="chat")]
    history = {
        "old": [items(*RIGHT, task="maths"), items(*WRONG, task="chat")],
        "new": [items(*WRONG, task="maths"), items(*RIGHT, task="chat")],
    }
    maths, chat = choose(student, history, seed=0)
    assert (maths.capability, maths.checkpoint, maths.significant, maths.lost_share) == ("maths", "old", True, 1.0)
    assert (maths.gain.value, maths.gain.low, maths.gain.high) == (1.0, 1.0, 1.0)
    assert (chat.capability, chat.checkpoint, chat.significant, chat.lost_share) == ("chat", "new", False, 0.0)
    assert chat.gain.value == 0.0


def test_of_equals_the_newest(items: Items) -> None:
    history = {name: [items(*RIGHT)] for name in ("a", "b", "c")}
    assert choose([items(*WRONG)], history, 0)[0].checkpoint == "c"


def test_one_half_chooses_and_the_other_estimates(items: Items) -> None:
    choosing, judging = halves(8, seed=3)
    flattered, steady, student = np.zeros(8), np.full(8, 0.5), np.full(8, 0.25)
    flattered[choosing] = 1.0  # best where it is chosen, nothing elsewhere
    history = {"flattered": [items(*flattered)], "steady": [items(*steady)]}
    found = choose([items(*student)], history, seed=3)[0]
    assert (found.checkpoint, found.gain.value, found.significant) == ("flattered", -0.25, False)
    assert set(judging.tolist()) | set(choosing.tolist()) == set(range(8))


def test_more_checkpoints_need_more_proof(items: Items) -> None:
    # 7 of 20 items gained, none lost: p = 2 / 2^7 = 0.0156, which survives Holm over 3 tests (0.047), not over 4 (0.0625)
    better = items(*(1.0,) * 7, *(0.0,) * 13)
    for others, significant in ((2, True), (3, False)):
        history = {"best": [better]} | {f"idle-{number}": [items(*WRONG)] for number in range(others)}
        found = choose([items(*WRONG)], history, seed=1)[0]
        assert found.checkpoint == "best"
        assert found.gain.value > 0
        assert found.significant is significant


def test_choosing_among_many_does_not_flatter(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 checkpoints no better than the student: the best of them looks better on the items that chose it, on the others as often worse
    monkeypatch.setattr("recoup.history.choose.MIN_RESAMPLES", 1000)
    monkeypatch.setattr("recoup.history.choose.RESAMPLES_PER_TEST", 1)
    generator = np.random.default_rng(0)
    gains, naive, proofs = [], [], 0
    for seed in range(60):
        student, *others = generator.normal(size=(13, 40))
        found = choose([items(*student)], {str(k): [items(*own)] for k, own in enumerate(others)}, seed)[0]
        gains.append(found.gain.value)
        naive.append(max(own.mean() for own in others) - student.mean())
        proofs += found.significant
    # a gain on 20 items has standard deviation sqrt(2 / 20) = 0.32, their mean over 60 draws 0.04
    assert abs(np.mean(gains)) < 0.13
    assert (
        np.mean(naive) > 0.2
    )  # the mean of the largest of 12 normals is 1.63 standard deviations, of sqrt(1 / 40) = 0.16 each
    assert proofs <= 3 + 6  # 5% of 60, and rather more than three standard deviations, sqrt(60 · 0.05 · 0.95) = 1.7


def test_share_lost() -> None:
    assert lost_share(0.5, 0.4, "acc") == pytest.approx(0.2)
    assert lost_share(0.0, -1.0, "reward") == 1.0  # no share can be told of nothing
    # half as likely a token: log-probabilities differ by log 2
    assert lost_share(-1.0, -1.0 - math.log(2), LOG_PROBABILITY) == pytest.approx(0.5)


def test_scores_and_gains_of_all_items(items: Items) -> None:
    # three of four right against two of four, one of the three being another one: gain 1/4
    found = compared([items(1, 1, 1, 0)], [items(1, 1, 0, 0)], seed=0)[0]
    assert (found.capability, found.score.value, found.gain.value) == ("t", 0.75, 0.25)
    assert found.gain.low == 0.0  # no resample of the pairs is negative: they are never taken apart
    assert found.gain.high > found.gain.value


def test_other_items_are_refused(items: Items) -> None:
    for other in (items(1, 0), items(1, 0, 1, task="u"), items(1, 0, 1, metric="em")):
        with pytest.raises(DataError, match="not scored on the same items"):
            choose([items(1, 0, 0)], {"a": [other]}, 0)
        with pytest.raises(DataError, match="not scored on the same items"):
            compared([other], [items(1, 0, 0)], 0)


@given(st.integers(2, 200), st.integers(0, 99))
@settings(deadline=None)
def test_halves_part_the_items(num_items: int, seed: int) -> None:
    choosing, judging = halves(num_items, seed)
    assert sorted([*choosing.tolist(), *judging.tolist()]) == list(range(num_items))
    assert 0 <= len(judging) - len(choosing) <= 1
    again = halves(num_items, seed)
    assert (again[0] == choosing).all()
