"""What looks mean for a run: best, recovered, newly damaged."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from recoup.config import Probe
from recoup.recover.looks import Looks, newly_damaged

RULE = Probe(recovered_at=0.25, patience=2)
GOOD = {"group a": (-1.0, -1.1, -0.9, -1.2, -1.0, -1.1, -0.8, -1.0), "task t": (1.0, 0.0, 1.0, 1.0)}
BAD = {**GOOD, "group a": tuple(mark - 0.5 for mark in GOOD["group a"])}


def seen(*kls: float, marks: dict = GOOD, rule: Probe = RULE) -> Looks:
    looks = Looks()
    for number, token_kl in enumerate(kls):
        looks = looks.after(rule, 10 * number, token_kl, marks)
    return looks


def test_the_lowest_kl_is_the_best_and_the_start_counts() -> None:
    assert (seen(2.0).best, seen(2.0).best_kl, seen(2.0).start_kl) == (0, 2.0, 2.0)
    assert seen(2.0, 1.0, 1.5).best == 10
    assert seen(2.0, 3.0).best == 0
    assert seen(2.0, 1.0, 1.0).best == 10  # the earlier of two equals
    assert seen(math.nan).best is None
    assert seen(2.0, math.nan).best == 0


def test_recovered_at_a_share_of_the_start() -> None:
    assert seen(2.0, 0.6).stopped is None
    stopped = seen(2.0, 0.6, 0.5).stopped  # a quarter of 2
    assert stopped is not None
    assert "step 20" in stopped
    assert "token KL 0.5 nats, at the start 2" in stopped
    assert seen(2.0, 0.0, rule=Probe()).stopped is None  # 0: never
    assert seen(0.0).stopped is None  # nothing was lost, and nothing is judged before the first step


def test_newly_damaged_takes_a_significant_loss() -> None:
    # eight of eight prompts worse: two of the 2^8 sign patterns are as extreme, p = 0.008, times 2 questions
    assert newly_damaged(GOOD, BAD) == ("group a",)
    assert newly_damaged(BAD, GOOD) == ()  # better is not worse
    assert newly_damaged(GOOD, GOOD) == ()
    five = {"group a": GOOD["group a"][:5]}
    assert newly_damaged(five, {"group a": BAD["group a"][:5]}) == ()  # 2 / 2^5 = 0.06: never significant
    tasks = {"task t": (1.0,) * 8}
    assert newly_damaged(tasks, {"task t": (0.0,) * 8}) == ("task t",)  # McNemar: 2 / 2^8


def test_damage_stops_the_run_only_while_it_lasts() -> None:
    looks = seen(2.0).after(RULE, 10, 1.0, BAD)
    assert (looks.worse, looks.stopped) == ({"group a": 1}, None)
    healed = looks.after(RULE, 20, 1.0, GOOD)
    assert healed.worse == {}
    assert healed.after(RULE, 30, 1.0, BAD).stopped is None
    stopped = looks.after(RULE, 20, 1.0, BAD).stopped
    assert stopped == "newly damaged at step 20: group a, worse than at the start at 2 looks in a row"


def test_a_damaged_student_is_never_the_best() -> None:
    looks = seen(2.0).after(RULE, 10, 1.0, BAD)
    assert (looks.best, looks.best_kl) == (0, 2.0)
    assert looks.after(RULE, 20, 1.5, GOOD).best == 20


def test_looks_survive_json() -> None:
    looks = seen(2.0, 1.0).after(RULE, 20, 0.9, BAD)
    again = Looks.from_dict(json.loads(json.dumps(looks.to_dict())))
    assert again == looks
    assert again.after(RULE, 30, 0.4, BAD) == looks.after(RULE, 30, 0.4, BAD)
    assert Looks.from_dict(json.loads(json.dumps(Looks().to_dict()))) == Looks()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_without_damage_the_best_is_the_first_minimum(kls: list[float]) -> None:
    looks = seen(*kls, rule=Probe())
    assert looks.best_kl == min(kls)
    assert looks.best == 10 * kls.index(min(kls))
    assert looks.last == 10 * (len(kls) - 1)
