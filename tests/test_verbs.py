"""Verbs that put runs side by side, and methods from Python."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import recoup
from recoup.cli import app
from recoup.config import METHODS
from recoup.errors import ConfigError
from tests.conftest import save_tiny

RESULTS = Path(__file__).parent.parent / "results"
SWEEP = {
    "name": "small",
    "injuries": {"nf4": {"settings": {"degrade": [{"type": "quantize", "format": "nf4"}]}}},
    "methods": ["interpolate", "kd_offpolicy", "onpolicy"],
}


def written(tmp_path: Path, tree: object) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_a_sweep_lists_its_runs_and_what_is_impossible(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["sweep", written(tmp_path, SWEEP), "seeds=[3]", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    names = [line for line in shown.output.splitlines() if line.endswith("-seed3")]
    assert names == ["nf4-none-seed3", "nf4-kd_offpolicy-seed3", "nf4-onpolicy-seed3"]
    assert "left out: nf4-interpolate-seed3: " in shown.output
    assert "3 runs, 1 left out" in shown.output


def test_a_misspelt_key_of_a_sweep(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["sweep", written(tmp_path, SWEEP | {"seedz": [0]}), "--dry-run"])
    assert isinstance(shown.exception, ConfigError)
    assert "did you mean 'seeds'" in str(shown.exception)


def test_runs_are_compared_on_one_page(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    shown = CliRunner().invoke(app, ["report", str(RESULTS / "demo"), str(RESULTS / "int3"), "-o", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "2 runs" in page.read_text(encoding="utf-8")


def test_there_is_no_step_to_plan_without_training(tmp_path: Path) -> None:
    tree = {"name": "free", "method": "interpolate", "degrade": [{"type": "sft", "train_file": "rows.jsonl"}]}
    shown = CliRunner().invoke(app, ["plan", written(tmp_path, tree)])
    assert isinstance(shown.exception, ConfigError)
    assert "trains nothing" in str(shown.exception)


def test_methods_are_listed() -> None:
    shown = CliRunner().invoke(app, ["ls", "methods"])
    assert [line.split()[0] for line in shown.output.splitlines()] == list(METHODS)


def test_another_method_from_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    words = ["recover", "--student", str(tiny_model), "--teacher", str(tiny_model), "-o", str(tmp_path), "method=none"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "none: the damaged student as it is" in shown.output


def test_another_method_from_python(tiny_model: Path, tmp_path: Path) -> None:
    student = str(save_tiny("llama", tmp_path / "student", seed=3))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"tell me about number {i}" for i in range(24)))
    kept = recoup.recover(student=student, teacher=str(tiny_model), output=tmp_path / "none", method="none")
    assert (kept.method, kept.checkpoint, kept.steps) == ("none", student, 0)
    trained = recoup.recover(
        student=student, teacher=str(tiny_model), output=tmp_path / "sft", prompts=str(prompts), method="sft",
        steps=1, batch_size=2, rollout={"max_tokens": 4},
    )  # fmt: skip
    assert (trained.method, trained.steps, trained.on_policy_from_step) == ("sft", 1, None)
    with pytest.raises(ConfigError, match="replay needs rows of the task"):
        recoup.recover(student=student, teacher=str(tiny_model), output=tmp_path / "replay", method="replay")
