"""Each verdict on evidence made by hand, and both sides of every border."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.results import RepairTrial
from recoup.triage.decide import best, decide, nothing_lost, regained
from recoup.triage.words import sentences
from tests.triage.records import around, diagnosis, evidence, group, pilot, task, trial


@pytest.mark.parametrize(
    ("found", "nothing"),
    [
        (diagnosis(0.0), True),
        (diagnosis(0.009, 0.001), True),  # the interval ends at 0.010
        (diagnosis(0.009, 0.002), False),  # at 0.011
        (diagnosis(0.005, groups=(group("code", 0.02, 0.011),)), True),  # from 0.009: may be within
        (diagnosis(0.005, groups=(group("code", 0.02, 0.009),)), False),  # from 0.011
        (diagnosis(0.005, tasks=(task("sciq", -0.02, significant=False),)), True),
        (diagnosis(0.005, tasks=(task("sciq", -0.1, significant=True),)), False),
    ],
)
def test_nothing_lost(found, nothing: bool) -> None:
    assert nothing_lost(found) is nothing
    if nothing:
        assert decide(evidence(1.0, diagnosis=found)).verdict == "nothing significant lost"


@pytest.mark.parametrize(
    ("after", "half", "verdict"),
    [
        (0.66, 0.1, "re-quantize better"),  # gains 0.34 of 1.0: more than a third
        (0.67, 0.1, "recover"),
        (0.4, 0.7, "recover"),  # gains 0.6, but 0.6 − 0.7 < 0: not significant
    ],
)
def test_better_rounding_that_gets_a_third(after: float, half: float, verdict: str) -> None:
    rounding = trial("rounding", 1.0, after, half=half, settings={"method": "gptq"})
    advice = decide(evidence(1.0, repairs=(rounding,), pilot=pilot(0.9, 0.05)))
    assert advice.verdict == verdict
    assert (advice.repair is rounding) == (verdict == "re-quantize better")


def test_rounding_comes_before_everything_else() -> None:
    """A pruned model at 4.5 nats is worse than no context at all (4), and pruning better brings it to 0.6."""
    repairs = (trial("rounding", 4.5, 0.6),)
    assert decide(evidence(4.5, repairs=repairs, pilot=pilot(0.0))).verdict == "re-quantize better"


def test_norms_alone_are_no_better_rounding() -> None:
    assert decide(evidence(1.0, repairs=(trial("norms", 1.0, 0.3),), pilot=pilot(0.5))).verdict == "recover"


@pytest.mark.parametrize(
    ("share", "after", "verdict"),
    [
        (0.4, 0.5, "interpolate with the base"),
        (0.5, 0.5, "interpolate with the base"),
        (0.4, 0.51, "recover"),
        (0.6, 0.1, "recover"),  # more base than student
    ],
)
def test_interpolation(share: float, after: float, verdict: str) -> None:
    repairs = (trial("interpolate", 1.0, after, settings={"share": share}),)
    assert decide(evidence(1.0, repairs=repairs, pilot=pilot(0.5))).verdict == verdict


def test_the_best_of_a_sweep_that_is_at_most_half_base() -> None:
    sweep = tuple(trial("interpolate", 1.0, (1 - s) ** 2, settings={"share": s}) for s in (0.2, 0.4, 0.6, 0.8))
    advice = decide(evidence(1.0, repairs=sweep))
    assert (advice.verdict, advice.repair) == ("interpolate with the base", sweep[1])


def test_a_truncated_delta_is_a_mix() -> None:
    repairs = (trial("svd_repair", 1.0, 0.2, settings={"rank_share": 0.125}),)
    assert decide(evidence(1.0, repairs=repairs)).verdict == "interpolate with the base"


@pytest.mark.parametrize(
    ("low", "left", "verdict"),
    [
        (0.61, 0.4, "recover"),  # all of the pilot's interval is above the mix's 0.6
        (0.60, 0.4, "interpolate with the base"),
        (0.999, 0.005, "interpolate with the base"),  # what the mix leaves is negligible
    ],
)
def test_training_that_promises_more_than_a_mix(low: float, left: float, verdict: str) -> None:
    repairs = (trial("interpolate", 1.0, left, settings={"share": 0.4}),)
    assert decide(evidence(1.0, repairs=repairs, pilot=pilot(low + 0.1, 0.1))).verdict == verdict


@pytest.mark.parametrize(
    ("kl", "fraction", "verdict"),
    [
        (3.9, 0.3, "recover"),  # better than no context
        (4.0, 0.51, "recover"),  # leaves 1.96 of 4: more than half is told
        (4.0, 0.50, "not recoverable at this size"),
        (9.0, 0.70, "not recoverable at this size"),  # leaves 2.7
        (9.0, None, "not recoverable at this size"),
        (1.0, None, "recover"),  # nobody tried
        (1.0, 0.10, "recover"),
        (1.0, 0.09, "not recoverable at this size"),
        (1.0, -0.5, "not recoverable at this size"),
    ],
)
def test_what_training_can_do(kl: float, fraction: float | None, verdict: str) -> None:
    advice = decide(evidence(kl, pilot=None if fraction is None else pilot(fraction)))
    assert (advice.verdict, advice.repair) == (verdict, None)


def test_a_pilot_that_broke_down() -> None:
    found = evidence(1.0, broke_down="the loss is nan")
    advice = decide(found)
    assert advice.verdict == "not recoverable at this size"
    assert "the loss is nan" in advice.reason
    assert "The pilot broke down: the loss is nan." in sentences(found)


def test_a_wreck_is_not_mended_by_going_back_to_the_base() -> None:
    repairs = (trial("interpolate", 9.0, 1.0, settings={"share": 0.4}), trial("svd_repair", 9.0, 0.5))
    assert decide(evidence(9.0, repairs=repairs, pilot=pilot(0.1))).verdict == "not recoverable at this size"


def test_regained_by_hand() -> None:
    assert regained(trial("rounding", 2.86, 1.33)) == pytest.approx(1.53 / 2.86)
    assert regained(trial("rounding", 0.0, 0.0)) == 0


def test_the_best_has_helped() -> None:
    worse, slightly, much = trial("norms", 1.0, 1.2), trial("norms", 1.0, 0.9), trial("rounding", 1.0, 0.3)
    assert best((worse, slightly, much)) is much
    assert best((worse,)) is None
    assert best(()) is None


@given(
    kl=st.floats(0, 12),
    fraction=st.none() | st.floats(-2, 1),
    repairs=st.lists(st.tuples(st.sampled_from(("interpolate", "svd_repair", "norms", "rounding")), st.floats(0, 12))),
)
def test_a_better_repair_never_makes_it_hopeless(
    kl: float, fraction: float | None, repairs: list[tuple[str, float]]
) -> None:
    """Whatever the evidence there is a verdict, and a repair that is recommended has helped, and gets a third back at least."""
    trials: tuple[RepairTrial, ...] = tuple(trial(name, kl, after, settings={"share": 0.4}) for name, after in repairs)
    advice = decide(evidence(kl, repairs=trials, pilot=None if fraction is None else pilot(fraction)))
    if advice.repair is not None:
        assert advice.repair.gain.low > 0
        assert regained(advice.repair) >= 1 / 3
    assert (advice.verdict == "nothing significant lost") == (kl <= 0.01)


def test_the_evidence_in_words() -> None:
    found = evidence(
        1.0,
        diagnosis=diagnosis(1.1, 0.1, groups=(group("code", 2.0, 0.1), group("chat", 0.5)), tasks=(
            task("sciq", -0.1, significant=True), task("tooluse", 0.2, significant=False), task("piqa", 0, significant=False),
        )),
        repairs=(
            trial("interpolate", 1.0, 0.4, settings={"share": 0.4}),
            trial("rounding", 1.0, 1.0, note="not tried: the student keeps no structure"),
        ),
        pilot=pilot(0.5),
    )  # fmt: skip
    text = "\n".join(sentences(found))
    assert "1.1 (1 to 1.2) nats over 512 tokens of 8 prompts" in text
    assert "75% of what the context tells is still there" in text  # 1 − 1/4
    assert "worst group of prompts is code" in text
    assert "1 of 3 benchmarks are significantly worse than the teacher's: sciq." in text
    assert "better than its teacher on tooluse" in text
    assert "lowest in block 1: 0.800, where the teacher in another precision has 0.999" in text
    assert "interpolate (share 0.4) leaves 0.4 (0.4 to 0.4) nats, a gain of 0.6 (0.6 to 0.6) (60%) in 2 s." in text
    assert "rounding: not tried: the student keeps no structure." in text
    assert "give up some of what the student learnt" in text
    assert "a recovered fraction of 0.5 (0.3 to 0.7) is predicted, at 30,000 tokens, 5.0 minutes and 4.0 GiB" in text


def test_words_on_a_mix_that_is_the_base() -> None:
    mostly = trial("interpolate", 9.0, 6.0, settings={"share": 0.8})
    text = "\n".join(sentences(evidence(9.0, repairs=(mostly,))))
    assert "interpolate helps only with more than 50% of the base" in text
    assert "give up" not in text


def test_no_words_on_what_was_not_looked_at() -> None:
    text = "\n".join(sentences(evidence(0.001, context_free_kl=math.inf)))
    assert "No benchmark was run" in text
    assert "ignores the context" not in text
    assert around(0.001).low == 0.001
