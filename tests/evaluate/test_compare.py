"""Verdicts and comparisons on scores made by hand."""

import pytest

from recoup.errors import DataError
from recoup.evaluate.compare import Contrast, compare, verdict
from recoup.results import TaskItems

LOWER, SLIGHTLY_LOWER = Contrast(-0.3, 0.001, 0.004), Contrast(-0.1, 0.03, 0.12)
SAME, HIGHER = Contrast(0.0, 1.0, 1.0), Contrast(0.3, 0.001, 0.004)


@pytest.mark.parametrize(
    ("damage", "gain", "remaining", "word"),
    [
        (LOWER, None, None, "damaged"),
        (SAME, None, None, "unharmed"),
        (HIGHER, None, None, "unharmed"),
        (LOWER, HIGHER, SAME, "healed"),
        (LOWER, HIGHER, HIGHER, "healed"),
        (LOWER, HIGHER, SLIGHTLY_LOWER, "partly healed"),  # uncorrected p contradicts "healed"
        (LOWER, HIGHER, LOWER, "partly healed"),
        (LOWER, SAME, SAME, "not healed"),  # no proof of a gain
        (LOWER, LOWER, LOWER, "not healed"),
        (SAME, SAME, LOWER, "newly damaged"),
        (HIGHER, LOWER, SAME, "newly damaged"),  # a gain that the repair took away
        (SAME, SAME, SLIGHTLY_LOWER, "unharmed"),  # not significant once corrected
        (SAME, HIGHER, SAME, "unharmed"),
        (HIGHER, SAME, HIGHER, "preserved"),
        (HIGHER, SAME, SAME, "preserved"),
    ],
)
def test_verdict(damage: Contrast, gain: Contrast | None, remaining: Contrast | None, word: str) -> None:
    assert verdict(damage, gain, remaining) == word


def items(*scores: float, task: str = "t", ids: tuple[str, ...] | None = None) -> TaskItems:
    names = ids or tuple(str(number) for number in range(len(scores)))
    return TaskItems(task=task, metric="acc", item_ids=names, scores=scores)


def test_a_healed_task() -> None:
    reference, degraded, recovered = [1.0] * 20, [0.0] * 15 + [1.0] * 5, [1.0] * 18 + [0.0] * 2
    [found] = compare([items(*reference)], [items(*degraded)], [items(*recovered)], num_bootstrap=500, seed=0)
    # b = 15, c = 0: p = 2 / 2^15; recovered against reference: b = 2, p = 1/2
    assert found.damage_significant
    assert found.verdict == "healed"
    assert (found.reference.value, found.degraded.value) == (1.0, 0.25)
    assert found.gain is not None
    assert found.remaining is not None
    values = [found.damage.value, found.gain.value, found.remaining.value]
    assert values == pytest.approx([-0.75, 0.65, -0.1])
    assert found.recovered_fraction is not None
    assert found.recovered_fraction.value == pytest.approx(0.65 / 0.75)
    assert found.recovered_fraction.low <= 0.65 / 0.75 <= found.recovered_fraction.high
    assert found.damage.excludes_zero


def test_no_fraction_without_significant_damage() -> None:
    reference, degraded = [1.0] * 10, [0.0] * 3 + [1.0] * 7  # b = 3: p = 1/4
    [found] = compare([items(*reference)], [items(*degraded)], [items(*reference)], num_bootstrap=100, seed=0)
    assert not found.damage_significant
    assert found.recovered_fraction is None
    assert found.verdict == "unharmed"


def test_holm_runs_over_the_tasks() -> None:
    # 6 of 6 lost: p = 2 / 2^6 = 0.03125, significant alone, not as one of two (0.0625)
    lost = [items(*[1.0] * 6)], [items(*[0.0] * 6)]
    same = items(*[1.0] * 6, task="u")
    assert compare(*lost, None, num_bootstrap=100, seed=0)[0].verdict == "damaged"
    two = compare([*lost[0], same], [*lost[1], same], None, num_bootstrap=100, seed=0)
    assert [task.verdict for task in two] == ["unharmed", "unharmed"]


def test_without_a_recovered_model() -> None:
    [found] = compare([items(1.0, 0.0)], [items(0.0, 0.0)], None, num_bootstrap=100, seed=0)
    assert (found.recovered, found.gain, found.remaining, found.recovered_fraction) == (None, None, None, None)


def test_different_items_are_refused() -> None:
    with pytest.raises(DataError, match="not scored on the same items"):
        compare([items(1.0, ids=("a",))], [items(1.0, ids=("b",))], None, num_bootstrap=10, seed=0)
