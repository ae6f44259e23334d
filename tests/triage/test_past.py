"""Predictions for finished runs."""

import json
from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.run_folder import RunFolder, result_path, write_text
from recoup.triage.past import past_predictions
from recoup.triage.predict import TYPICAL_ERROR
from tests.triage.records import diagnosis

RESULTS = Path(__file__).parents[2] / "results"


def step(number: int, loss: float, **more: object) -> str:
    fields = {
        "step": number, "phase": "on_policy", "loss": loss, "grad_norm": 1.0, "learning_rate": 1.0, "num_tokens": 10,
        "completion_tokens_mean": 5.0, "seconds_sampling": 1.0, "seconds_teacher": 1.0, "seconds_student": 1.0,
    }  # fmt: skip
    return json.dumps(fields | more) + "\n"


def finished(root: Path, losses: list[float], before: float, after: float, **more: object) -> RunFolder:
    folder = RunFolder(root)
    write_text(folder.recover / "metrics.jsonl", "".join(step(n, loss, **more) for n, loss in enumerate(losses)))
    for state, kl in (("before", before), ("after", after)):
        write_text(result_path(folder.diagnose(state)), diagnosis(kl).model_dump_json())
    return folder


def test_a_run_on_the_curve(tmp_path: Path) -> None:
    """(1 + 7 s)^(−1/3): 1, 1/2, 0.4055; all 9 steps leave (1 + 63)^(−1/3) = 1/4."""
    finished(tmp_path / "a", [2 * (1 + 7 * s) ** (-1 / 3) for s in range(9)], before=1.5, after=0.6)
    (found,) = past_predictions(tmp_path, 3)
    assert found.run == "a"
    assert found.predicted == pytest.approx(0.75, abs=0.02)
    assert found.actual == pytest.approx(0.6)


def test_the_divergence_counts_where_the_loss_holds_more(tmp_path: Path) -> None:
    finished(tmp_path / "a", [1.0, 2.0, 3.0, 4.0], 1.0, 0.5, kl=0.7)  # the divergence does not move
    assert past_predictions(tmp_path, 3)[0].predicted == 0.0


def test_what_is_no_finished_run_is_left_out(tmp_path: Path) -> None:
    assert past_predictions(tmp_path / "absent", 2) == ()
    (tmp_path / "benchmarks").mkdir()
    finished(tmp_path / "short", [1.0, 0.9], 1.0, 0.5)
    finished(tmp_path / "undamaged", [1.0, 0.9, 0.8], 0.0, 0.0)
    unfinished = finished(tmp_path / "unfinished", [1.0, 0.9, 0.8], 1.0, 0.5)
    result_path(unfinished.diagnose("after")).unlink()
    write_text(result_path(finished(tmp_path / "rounded", [1.0, 0.9, 0.8], 1.0, 0.5).recover / "start"), "{}")
    assert past_predictions(tmp_path, 2) == ()


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path / "a", [1.0, 0.9, 0.8], 1.0, 0.5)
    write_text(result_path(folder.diagnose("before")), "{")
    with pytest.raises(DataError, match="before"):
        past_predictions(tmp_path, 2)


def test_the_runs_that_are_kept() -> None:
    """The error that intervals are made of is what six steps of the committed runs show, or more."""
    found = past_predictions(RESULTS, 6)
    assert found
    errors = [abs(run.predicted - run.actual) for run in found]
    assert sum(errors) / len(errors) < 1.5 * TYPICAL_ERROR
