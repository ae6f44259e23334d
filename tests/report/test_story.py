"""The four paragraphs, on records made by hand."""

from dataclasses import replace

import pytest

from recoup.config.methods import AFTER, COMPRESSING
from recoup.report import advice
from recoup.report.gather import Run, gather
from recoup.report.story import story
from recoup.results import TaskComparison
from recoup.run_folder import RunFolder

from .conftest import (
    RECOVERY,
    around,
    evaluation,
    healed,
    not_healed,
    preserved,
    probe,
    put_all_items,
)
from .diagnosed import TRIAGE

FREE = RECOVERY.model_copy(
    update={"method": "interpolate", "note": "share 0.5", "steps": 0, "first_loss_nats": None, "last_loss_nats": None}
)


@pytest.fixture
def run(finished: RunFolder) -> Run:
    return gather(finished)


def told(run: Run) -> dict[str, str]:
    return {paragraph.title: paragraph.text for paragraph in story(run)}


def judged(verdict: str, task: str = "piqa", damage: float = -0.005) -> TaskComparison:
    return preserved(task).model_copy(update={"verdict": verdict, "damage": around(damage, 0.02)})


def advised(run: Run, *tasks: TaskComparison) -> str:
    return told(replace(run, evaluation=evaluation(*tasks)))["What to do next"]


def test_a_finished_run(run: Run):
    # arc_easy lost 0.15, hellaswag 0.08; KL and agreement of conftest.evaluation; CKA of the last layer 1 − 0.3
    assert told(run) == {
        "What was lost": "2 of 3 benchmarks fell significantly: arc_easy from 0.550 to 0.400, hellaswag from 0.430 to 0.350. "
        "Word by word the damaged model is 0.412 [0.392, 0.432] nats from the reference (token KL), and its likeliest token is the "
        "reference's in 71% [70%, 72%] of places. Hidden states differ most in layer 29 (CKA 0.700).",
        "What came back": "Healed: hellaswag (88% [61%, 104%] of the loss). Not healed: arc_easy (7% [−6%, 20%] of the loss). "
        "Gain of the damaging step kept: piqa. Furthest below the reference now: arc_easy, by −0.140 [−0.170, −0.110]. "
        "Token KL went from 0.412 to 0.0871 [0.0671, 0.107] nats.",
        "What it cost": "The method onpolicy took 40 steps over 40,000 completion tokens of 256 prompts: 4.2 min and 3.00 GiB of "
        "memory at the peak. The structure was kept exactly: int3 grid, 210 matrices.",
        "What to do next": "arc_easy did not come back whole: compress the earlier model better to the same format first (method: "
        "onpolicy_rounded), or train longer (recover.steps).",
    }  # fmt: skip


def test_items_are_counted(finished: RunFolder):
    put_all_items(finished)
    paragraphs = told(gather(finished))
    assert "Of 3 items that the reference gets right, the damaged model gets 1 wrong." in paragraphs["What was lost"]
    words = "Of the 1 item that the damage took, the repair brought back 1; of those that it had left, the repair newly got 1 wrong."
    assert words in paragraphs["What came back"]


def test_a_repair_without_training(run: Run):
    paragraphs = told(replace(run, recovery=FREE))
    assert paragraphs["What it cost"].startswith("The method interpolate (share 0.5) trains nothing; it took 4.2 min")
    assert "interpolate trains nothing: repair with method: onpolicy_interpolated." in paragraphs["What to do next"]
    rounded = replace(run, recovery=FREE.model_copy(update={"method": "rounding"}))
    assert "rounding trains nothing: repair with method: onpolicy_rounded." in told(rounded)["What to do next"]


def test_missing_stages(run: Run):
    nothing = replace(run, before=None, after=None, recovery=None, evaluation=None, triage=TRIAGE)
    paragraphs = told(nothing)
    assert paragraphs["What was lost"] == "Benchmarks were not run. Token KL was not measured."
    assert paragraphs["What came back"] == "No repair was evaluated."
    assert paragraphs["What it cost"] == "Nothing was repaired in this run."
    assert paragraphs["What to do next"].startswith(f"The triage says: {TRIAGE.verdict}. {TRIAGE.reason}")
    assert told(replace(run, evaluation=None))["What to do next"].startswith("Run the evaluation")
    assert "Repair the model" in told(replace(run, recovery=None))["What to do next"]


def test_new_damage_is_named_by_what_it_hurt(run: Run):
    assert advised(run, healed(), judged("newly damaged")).startswith("The repair harmed piqa: take fewer steps")
    # the damaging step had raised it by 0.2, interval above 0
    lost = advised(run, healed(), judged("newly damaged", "tooluse", 0.2))
    assert lost.startswith("The repair undid what the damaging step had taught (tooluse): add a term")


def test_a_repair_that_still_gained_is_to_train_longer(run: Run):
    # ±0.05: 0.288 and 0.202 are not apart, 0.412 and 0.288 are
    assert "was still falling" not in advised(replace(run, probe=tuple(probe())), not_healed())
    words = "still falling at the end (0.412 to 0.288 nats): train longer"
    assert words in advised(replace(run, probe=tuple(probe()[:5])), not_healed())


def test_a_compressed_model_is_first_compressed_better(run: Run):
    longer = "train longer (recover.steps), or teach from a checkpoint that is better at it"
    assert longer not in advised(run, not_healed())
    assert longer in advised(replace(run, injuries=run.injuries[:1]), not_healed())  # fine-tuned alone
    rounded = RECOVERY.model_copy(update={"method": "onpolicy_rounded"})
    assert longer in advised(replace(run, recovery=rounded), not_healed())


def test_nothing_left_to_do(run: Run):
    assert advised(run, healed()).startswith(
        "All that was significantly lost came back. Use the model as it is: checkpoint"
    )
    assert advised(run, judged("unharmed")).startswith("No benchmark shows damage; more items (evaluate.limit)")
    assert advised(run).startswith("Evaluate benchmarks")


def test_a_lost_structure_comes_first(run: Run):
    broken = replace(run, recovery=RECOVERY.model_copy(update={"structure_exact": False}))
    paragraphs = told(broken)
    assert "not kept exactly" in paragraphs["What it cost"]
    assert paragraphs["What to do next"].startswith("Do not use this model")


def test_many_benchmarks_are_counted_not_listed(run: Run):
    tasks = [not_healed(f"t{place}") for place in range(6)]
    assert "t0, t1, t2, t3 and 2 more did not come back whole" in advised(run, *tasks)


def test_what_an_interval_does_not_tell_is_not_called_lost(run: Run):
    wide = not_healed("wide").model_copy(update={"recovered_fraction": around(0.4, 0.8)})
    assert advised(run, wide) == "What came back on wide cannot be told: evaluate more items (evaluate.limit)."


def test_advice_knows_the_methods_of_the_config():
    assert {after: first for first, after in advice.TRAINED_AFTER.items()} == AFTER
    assert advice.COMPRESSING == COMPRESSING
