from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.report.gather import gather, gather_diagnosis
from recoup.results import Result
from recoup.run_folder import RunFolder, write_text

from .conftest import NUM_STEPS, diagnosis, evaluation, healed, injury, put, put_probe
from .diagnosed import DIAGNOSIS, HISTORY, TRIAGE


def test_everything_is_read(finished: RunFolder):
    run = gather(finished)
    assert run.name == "forget-then-round"
    assert run.evaluation is not None
    assert run.recovery is not None
    assert len(run.steps) == NUM_STEPS


def test_injuries_follow_the_config_not_the_alphabet(finished: RunFolder):
    put(finished.degrade("magnitude"), injury("magnitude", "not in the config"))
    assert [i.method for i in gather(finished).injuries] == ["sft", "quantize", "magnitude"]


def test_looks_of_the_probe_are_read(finished: RunFolder):
    assert gather(finished).probe == ()
    put_probe(finished)
    assert [look.step for look in gather(finished).probe] == [0, 20, 40, 60, 80, 100]


def test_a_diagnosis_is_read_with_what_stands_under_it(tmp_path: Path):
    put(tmp_path, DIAGNOSIS)
    alone = gather_diagnosis(tmp_path)
    assert (alone.result.seconds, alone.triage, alone.history) == (71, None, None)
    put(tmp_path / "triage", TRIAGE)
    put(tmp_path / "history", HISTORY)
    whole = gather_diagnosis(tmp_path)
    assert whole.history == HISTORY
    assert whole.triage is not None
    assert whole.triage.verdict == "re-quantize better"


@pytest.mark.parametrize(
    ("stage", "other"),
    [
        ("triage", TRIAGE.model_copy(update={"student": "another"})),
        ("triage", TRIAGE.model_copy(update={"teacher": "another"})),
        ("history", HISTORY.model_copy(update={"student": "another"})),
    ],
)
def test_advice_about_other_models_is_left_out(tmp_path: Path, stage: str, other: Result):
    put(tmp_path, DIAGNOSIS)
    put(tmp_path / stage, other)
    found = gather_diagnosis(tmp_path)
    assert (found.triage, found.history) == (None, None)


def test_the_triage_of_the_damaged_model_is_read(finished: RunFolder):
    assert gather(finished).triage is None
    put(finished.diagnose("before") / "triage", TRIAGE)
    found = gather(finished).triage
    assert found is not None
    assert found.verdict == TRIAGE.verdict


def test_no_diagnosis_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match=r"result\.json: no such result"):
        gather_diagnosis(tmp_path)


def test_missing_stages_are_null(empty: RunFolder):
    put(empty.diagnose("before"), diagnosis(scale=0.3, kl=0.45))
    run = gather(empty)
    assert (run.injuries, run.steps) == ((), ())
    assert (run.after, run.recovery, run.evaluation) == (None, None, None)


def test_name_falls_back_to_the_folder(empty: RunFolder):
    empty.config.unlink()
    put(empty.evaluate, evaluation(healed()))
    assert gather(empty).name == "a-run"


def test_fidelity_comes_from_the_diagnoses_without_an_evaluation(finished: RunFolder):
    before, after = gather(finished).fidelity
    assert (before and before.token_kl_nats.value, after and after.token_kl_nats.value) == (0.4123, 0.0871)
    (finished.evaluate / "result.json").unlink()
    before, after = gather(finished).fidelity
    assert (before and before.token_kl_nats.value, after and after.token_kl_nats.value) == (0.45, 0.1)


def test_a_folder_without_results_is_an_error_in_one_line(empty: RunFolder):
    with pytest.raises(DataError, match="no stage of a run is finished here") as caught:
        gather(empty)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("config.yaml", "a: [", "not YAML"),
        ("config.yaml", "- a", "expected a mapping"),
        ("provenance.json", "{", "not JSON"),
        ("provenance.json", "[]", "expected a JSON object"),
        ("recover/metrics.jsonl", '{"step": 1}', "not a recovery step"),
        ("recover/probe.jsonl", '{"step": 1}', "not a look of the probe"),
        ("evaluate/result.json", "{}", "not a readable EvaluateResult"),
        ("evaluate/result.json", '{"schema_version": 99}', "upgrade recoup"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(finished: RunFolder, file: str, text: str, reason: str):
    write_text(finished.root / file, text)
    with pytest.raises(DataError, match=reason) as caught:
        gather(finished)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
