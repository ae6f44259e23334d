"""The parts of items and tasks, on scores made by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.errors import DataError
from recoup.evaluate.compare import compare
from recoup.report.partition import (
    TASK_PARTS,
    count_parts,
    is_share,
    partition_items,
    partition_tasks,
    wilson,
    worst_task,
)
from recoup.results import Estimate, TaskComparison, TaskItems

STATES = list(itertools.product((1.0, 0.0), repeat=3))  # 111, 110, 101, 100, 011, 010, 001, 000


def items(scores: list[float], task: str = "t", metric: str = "acc") -> TaskItems:
    ids = tuple(f"i{number}" for number in range(len(scores)))
    return TaskItems(task=task, metric=metric, item_ids=ids, scores=tuple(scores))


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def comparison(task: str, means: tuple[float, ...], verdict: str = "unharmed") -> TaskComparison:
    reference, degraded, *recovered = means
    after = recovered[0] if recovered else None
    return TaskComparison.model_validate(
        {
            "task": task,
            "metric": "acc",
            "num_items": 9,
            "reference": exact(reference),
            "degraded": exact(degraded),
            "recovered": None if after is None else exact(after),
            "damage": exact(degraded - reference),
            "gain": None if after is None else exact(after - degraded),
            "remaining": None if after is None else exact(after - reference),
            "recovered_fraction": None,
            "damage_significant": False,
            "verdict": verdict,
        }
    )


def test_every_transition_has_its_part() -> None:
    [found] = partition_items(*([items(list(scores))] for scores in zip(*STATES, strict=True)))
    assert dict(zip(STATES, found.parts, strict=True)) == {
        (1, 1, 1): "preserved",
        (1, 1, 0): "newly damaged",
        (1, 0, 1): "healed",
        (1, 0, 0): "not healed",
        (0, 1, 1): "task kept",
        (0, 1, 0): "task lost",
        (0, 0, 1): "newly right",
        (0, 0, 0): "never right",
    }
    assert (found.task, found.metric) == ("t", "acc")
    assert found.item_ids[found.parts.index("healed")] == "i2"  # the third of STATES
    assert found.share("healed").value == 1 / 8
    assert found.count("healed", "preserved") == 2
    assert found.healed_of_damaged is not None
    assert found.healed_of_damaged.value == 1 / 2


def test_nothing_damaged_has_no_share_healed() -> None:
    [found] = partition_items([items([1.0, 0.0])], [items([1.0, 1.0])], [items([0.0, 1.0])])
    assert found.parts == ("newly damaged", "task kept")
    assert found.healed_of_damaged is None


def test_graded_scores_have_no_parts() -> None:
    right, half = [items([1.0]), items([1.0], task="graded")], [items([1.0]), items([0.5], task="graded")]
    assert [found.task for found in partition_items(right, half, right)] == ["t"]


def test_parts_are_counted_over_tasks() -> None:
    before = [items([1.0, 1.0]), items([1.0], task="u")]
    broken = [items([0.0, 1.0]), items([0.0], task="u")]
    found = count_parts(partition_items(before, broken, before))
    assert {part: number for part, number in found.items() if number} == {"healed": 2, "preserved": 1}
    assert len(found) == 8


def test_different_items_are_refused() -> None:
    with pytest.raises(DataError, match="not scored on the same items"):
        partition_items([items([1.0])], [items([1.0, 1.0])], [items([1.0])])
    with pytest.raises(DataError, match="not scored on the same items"):
        partition_items([items([1.0])], [items([1.0])], [items([1.0], metric="em")])


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=30))
def test_parts_add_up_to_the_gain(states: list[tuple[float, float, float]]) -> None:
    models = [[items(list(scores))] for scores in zip(*states, strict=True)]
    [found] = partition_items(*models)
    net = found.count("healed", "newly right") - found.count("newly damaged", "task lost")
    [compared] = compare(*models, num_bootstrap=2, seed=0)
    assert compared.gain is not None
    assert compared.gain.value == pytest.approx(net / len(states))


def test_tasks_by_verdict() -> None:
    tasks = [
        comparison("mmlu", (0.5, 0.3, 0.45), "healed"),
        comparison("arc", (0.6, 0.4, 0.42), "not healed"),
        comparison("tooluse", (0.4, 0.7, 0.69), "preserved"),
        comparison("piqa", (0.7, 0.7, 0.7), "unharmed"),
        comparison("ifeval", (0.5, 0.5, 0.2), "newly damaged"),
        comparison("boolq", (0.8, 0.5, 0.7), "partly healed"),
        comparison("sciq", (0.9, 0.9, 0.9), "unharmed"),
    ]
    found = partition_tasks(tasks)
    assert found.tasks == {
        "preserved": ("piqa", "sciq"),
        "healed": ("mmlu",),
        "partly healed": ("boolq",),
        "not healed": ("arc",),
        "newly damaged": ("ifeval",),
        "task kept": ("tooluse",),
    }
    assert found.worst is tasks[4]  # −0.3, where arc is at −0.18


def test_every_verdict_of_a_repair_has_a_part() -> None:
    verdicts = set(TaskComparison.model_fields["verdict"].annotation.__args__)  # type: ignore[union-attr]
    assert verdicts - set(TASK_PARTS) == {"damaged"}  # the word for no repair


def test_without_a_repair_nothing_is_healed() -> None:
    with pytest.raises(DataError, match="arc, piqa: no recovered model"):
        partition_tasks([comparison("arc", (0.6, 0.4)), comparison("piqa", (0.6, 0.4))])


def test_worst_task() -> None:
    unrepaired = [comparison("a", (0.6, 0.5)), comparison("b", (0.6, 0.3))]
    assert worst_task(unrepaired) is unrepaired[1]
    nats = comparison("wikitext2", (-2.0, -4.0, -3.0))  # one nat is not a hundred points
    small = comparison("a", (0.6, 0.5, 0.59))
    assert worst_task([nats, small]) is small
    assert worst_task([nats]) is None


def test_wilson() -> None:
    # z² = 3.8415. 0 of 10: the middle and the half are both z²/20 / (1 + z²/10) = 0.19207 / 1.38415, so 0 to 0.27753
    none = wilson(0, 10)
    assert [none.value, none.low, none.high] == pytest.approx([0, 0, 0.27753], abs=1e-5)
    # 5 of 10: 0.5 ± 1.95996 · sqrt(0.025 + 3.8415/400) / 1.38415 = 0.5 ± 0.26341
    half = wilson(5, 10)
    assert [half.low, half.high] == pytest.approx([0.23659, 0.76341], abs=1e-5)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_share_and_mirrors(count: int, total: int) -> None:
    count = min(count, total)
    found, mirrored = wilson(count, total), wilson(total - count, total)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert [1 - mirrored.high, 1 - mirrored.low] == pytest.approx([found.low, found.high])


def test_a_score_that_is_not_a_number_is_no_ones_worst() -> None:
    broken, small = comparison("a", (0.6, float("nan"), float("nan"))), comparison("b", (0.6, 0.5, 0.55))
    assert is_share(broken)
    assert not is_share(comparison("wikitext2", (-2.0, -4.0)))
    assert worst_task([broken, small]) is small
    assert worst_task([broken]) is None
