import math

import pytest
import yaml

from recoup.config import Recover
from recoup.report import advice_grids
from recoup.report.grid import Grid, known, known_interval, without_empty_columns
from recoup.results import CheckpointScores, PastPrediction

from .conftest import around
from .diagnosed import HISTORY, PILOT, TRIAGE, capability


def test_repairs_name_their_settings_and_what_became_of_them():
    rounding, norms, interpolate = advice_grids.repair_grid(TRIAGE.repairs).rows
    assert rounding[0] == "rounding (method gptq, damping 0.01)"
    assert rounding[1] == "0.704 [0.614, 0.794]"
    assert rounding[-1] == "saved in diagnosis/triage/repaired"
    assert norms[0] == "norms"
    assert norms[-1] == "not kept"
    # it was not tried: no numbers, and the reason
    assert interpolate[1:5] == ("–", "–", "–", "–")
    assert interpolate[-1] == "not tried: a student on a grid leaves it when its weights are mixed"


def test_the_pilot_says_cost_and_prediction():
    pairs = advice_grids.pilot_pairs(PILOT)
    assert pairs["pilot"] == "6 steps, 3,218 completion tokens, 41.0 s"
    assert pairs["predicted recovered fraction of the token KL"] == "78% [64%, 88%]"
    assert pairs["predicted time"] == "8.0 min"
    assert pairs["predicted peak memory"] == "5.00 GiB"


def test_errors_of_past_predictions():
    # |0.81 − 0.76| = 5 points, |0.55 − 0.70| = 15 points: 10 on average
    assert "2 finished runs the same prediction was off by 10 percentage points on average, 15 at most" in (
        advice_grids.past_sentence(TRIAGE.past)
    )
    assert [row[-1] for row in advice_grids.past_grid(TRIAGE.past).rows] == ["+5 points", "−15 points"]
    assert "1 finished run the" in advice_grids.past_sentence([PastPrediction(run="a", predicted=0.5, actual=0.5)])


def test_peaks_are_marked():
    grid = advice_grids.history_grid(HISTORY)
    assert grid.columns == ("Checkpoint", "tooluse", "science")
    assert [row[1].startswith("▲") for row in grid.rows] == [False, False, True, False, False]
    assert [row[2].startswith("▲") for row in grid.rows] == [False, False, False, True, False]
    assert grid.rows[3][2] == "▲ 0.710 [0.670, 0.750]"


def test_a_checkpoint_may_lack_a_capability():
    first, *rest = HISTORY.checkpoints
    nowhere = capability("tooluse", 0.3, 0.4).model_copy(update={"score": around(math.nan, math.nan)})
    bare = CheckpointScores(checkpoint="bare", order=9, scores=(nowhere,))
    history = HISTORY.model_copy(update={"checkpoints": (first, *rest, bare)})
    assert advice_grids.history_grid(history).rows[-1] == ("9: bare", "–", "–")
    only_bare = HISTORY.model_copy(update={"checkpoints": (bare,)})
    assert advice_grids.peak_of(only_bare, "tooluse") is None
    assert advice_grids.peak_of(only_bare, "science") is None


def test_the_earliest_of_equals_is_the_peak():
    same = tuple(x.model_copy(update={"scores": (capability("a", 0.5, 0.5),)}) for x in HISTORY.checkpoints)
    peak = advice_grids.peak_of(HISTORY.model_copy(update={"checkpoints": same}), "a")
    assert peak is not None
    assert peak.order == 0


def test_terms_are_a_config():
    tree = yaml.safe_load(advice_grids.terms_yaml(HISTORY))
    assert Recover.model_validate(tree["recover"]).terms[0].teacher == "sft/checkpoint-300"
    assert advice_grids.terms_yaml(HISTORY.model_copy(update={"terms": ()})) == ""


@pytest.mark.parametrize(("value", "expected"), [(None, "–"), (math.nan, "–"), (0.0, "0.000"), (-0.25, "−0.250")])
def test_known(value: float | None, expected: str):
    assert known(value) == expected


def test_known_interval():
    assert known_interval(None) == "–"
    assert known_interval(around(0.5, 0.25)) == "0.500 [0.250, 0.750]"


def test_empty_columns_are_left_out_and_words_stay_words():
    grid = Grid("c", ("name", "none", "some", "said"), (("a", "–", "–", "x"), ("b", "–", "1", "y")), words=(3,))
    kept = without_empty_columns(grid)
    assert kept.columns == ("name", "some", "said")
    assert kept.rows == (("a", "–", "x"), ("b", "1", "y"))
    assert kept.words == (2,)
