"""`recoup diagnose` from end to end on tiny models: diagnosis, history, advice, page."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from recoup.cli import app
from recoup.errors import ConfigError
from recoup.examine import Patient, examine
from recoup.results import DiagnoseResult, HistoryResult, TriageResult
from tests.conftest import save_tiny

PLAN = {"batch_size": 2, "micro_batch_size": 2, "steps": 3, "rollout": {"max_tokens": 4}, "bootstrap": {"max_steps": 0}}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = (
        f'{{"prompt": "Tell me {n} things about {n}.", "answer": "{n}, {n}", "group": "{n % 2}"}}' for n in range(60)
    )
    path.write_text("\n".join(rows))
    return path


def test_all_of_it(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    student = save_tiny("llama", tmp_path / "history" / "checkpoint-2", seed=1)
    save_tiny("llama", tmp_path / "history" / "checkpoint-1", seed=2)
    settings = {
        "prompts": str(prompts),
        "num_prompts": 8,
        "max_tokens": 6,
        "triage": {"pilot_steps": 1, "repairs": ["interpolate"], "plan": PLAN},
        "history": {"prompts": str(prompts), "num_prompts": 24},
    }
    out = tmp_path / "out"
    found = examine(Patient(str(tiny_model), str(student), tmp_path / "history"), settings, out)
    assert DiagnoseResult.read(out / "result.json") == found.diagnosis
    assert HistoryResult.read(out / "history" / "result.json") == found.history
    assert TriageResult.read(out / "triage" / "result.json") == found.triage
    assert found.triage is not None
    assert found.triage.verdict in found.page.read_text(encoding="utf-8").lower()
    assert {group.group for group in found.diagnosis.groups} == {"0", "1"}


def test_no_advice_where_none_is_wanted(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--teacher", str(tiny_model), "--student", str(tiny_model), "--output", str(out)]
    settings = [f"prompts={prompts}", "num_prompts=6", "max_tokens=4", "behaviour=false", "triage=null"]
    shown = CliRunner().invoke(app, ["diagnose", *arguments, *settings])
    assert shown.exit_code == 0, shown.output
    assert "token KL 0.000" in shown.output
    assert not (out / "triage").exists()
    assert (out / "index.html").is_file()


def test_history_settings_without_a_history(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need --history"):
        examine(Patient("nowhere", str(tiny_model)), {"history": {"tasks": ["sciq"]}}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
