from dataclasses import replace

import pytest

from recoup.report.gather import Run, gather
from recoup.report.headline import headline
from recoup.results import EvaluateResult, TaskComparison
from recoup.run_folder import RunFolder

from .conftest import evaluation, healed, not_healed, preserved, tokens


@pytest.fixture
def run(finished: RunFolder) -> Run:
    return gather(finished)


def title(run: Run, *tasks: TaskComparison) -> str:
    return headline(replace(run, evaluation=evaluation(*tasks))).title


def without_repair(task: TaskComparison) -> TaskComparison:
    return task.model_copy(update={"recovered": None, "recovered_fraction": None, "verdict": "damaged"})


def with_kl(before: float, after: float) -> EvaluateResult:
    """Intervals are ±0.02."""
    changes = {"degraded_fidelity": tokens(before, 0.7, 4), "recovered_fidelity": tokens(after, 0.8, 3)}
    return evaluation(healed()).model_copy(update=changes)


def test_damage_fidelity_and_benchmarks_in_one_sentence(run: Run):
    assert headline(run).title == (
        "Damaged by sft, then quantize: token KL to the reference fell from 0.412 to 0.0871 nats; "
        "of 2 significantly damaged benchmarks, 1 healed, 1 not healed."
    )


def test_intervals_stand_below(run: Run):
    assert headline(run).sentences == (
        "Token KL in nats per token, with its 95% interval: degraded 0.412 [0.392, 0.432], recovered 0.0871 [0.0671, 0.107].",
    )


def test_partly_healed_is_counted(run: Run):
    partly = healed("boolq").model_copy(update={"verdict": "partly healed"})
    assert title(run, healed(), partly, partly).endswith(
        "of 3 significantly damaged benchmarks, 1 healed, 2 partly healed."
    )


def test_nothing_came_back(run: Run):
    assert title(run, not_healed(), preserved()).endswith("nothing came back on 1 significantly damaged benchmark.")


def test_no_significant_damage(run: Run):
    assert title(run, preserved("a"), preserved("b")).endswith(
        "no significant damage on 2 benchmarks, so none to heal."
    )


def test_no_repair_evaluated(run: Run):
    tasks = [without_repair(healed()), without_repair(not_healed()), preserved()]
    assert title(run, *tasks).endswith("2 of 3 benchmarks significantly damaged, no repair evaluated.")


def test_new_damage_is_named(run: Run):
    worse = preserved().model_copy(update={"verdict": "newly damaged"})
    sentences = headline(replace(run, evaluation=evaluation(healed(), worse))).sentences
    assert sentences[-1] == "The repair newly damaged 1 benchmark: piqa."


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.40, 0.35, "fell from 0.400 to 0.350 nats;"),  # [0.38, 0.42] and [0.33, 0.37] are apart
        (0.40, 0.37, "went from 0.400 to 0.370 nats, which their intervals do not tell apart;"),  # [0.35, 0.39] meets
        (0.35, 0.40, "rose from 0.350 to 0.400 nats;"),
    ],
)
def test_a_change_of_fidelity_is_claimed_only_where_intervals_are_apart(
    run: Run, before: float, after: float, words: str
):
    assert words in headline(replace(run, evaluation=with_kl(before, after))).title


def test_missing_stages(run: Run):
    nothing = replace(run, injuries=(), before=None, after=None, evaluation=None)
    assert headline(nothing).title == "Damaged before this run: benchmarks were not run."
    assert headline(nothing).sentences == ("Token KL was not measured.",)
    degraded = replace(run, after=None, evaluation=None)
    assert "token KL from the reference to the degraded model is 0.450 nats" in headline(degraded).title
