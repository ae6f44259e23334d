"""The stage from models to result: what it writes, what it reuses, what it refuses."""

import json
import os
from pathlib import Path

import pytest
import torch

from recoup.config import Evaluate
from recoup.errors import ConfigError, DataError, SourceError
from recoup.evaluate import run as stage
from recoup.evaluate.run import EvaluateInputs, run, score
from recoup.models.load import load
from recoup.results import EvaluateResult, ModelScores
from recoup.run_folder import result_path
from tests.conftest import save_tiny


@pytest.fixture
def config(data_folder: Path, local_benchmarks: Path, tmp_path: Path) -> Evaluate:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"Tell me about number {i}.\n" for i in range(60)))
    return Evaluate(
        tasks=("arc_easy", "science"),
        limit=3,
        data=str(data_folder),
        fidelity_prompts=str(prompts),
        num_fidelity_prompts=4,
        fidelity_tokens=5,
        num_bootstrap=50,
    )


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never ends its turn."""
    from dataclasses import replace

    from recoup.evaluate import tasks

    short = {name: replace(task, max_tokens=6) for name, task in tasks.CHAT_TASKS.items()}
    monkeypatch.setattr(tasks, "CHAT_TASKS", short)


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path) -> EvaluateInputs:
    degraded, recovered = save_tiny("llama", tmp_path / "degraded", seed=1), save_tiny("llama", tmp_path / "recovered")
    return EvaluateInputs(str(tiny_model), str(degraded), str(recovered), dtype=torch.float32)


def test_a_whole_evaluation(config: Evaluate, inputs: EvaluateInputs, tmp_path: Path) -> None:
    labels: dict[str, tuple[int, int]] = {}
    result = run(config, inputs, tmp_path / "out", lambda label, done, total: labels.update({label: (done, total)}))
    assert EvaluateResult.read(result_path(tmp_path / "out")) == result
    assert [task.task for task in result.tasks] == ["arc_easy", "science"]
    assert result.tasks[0].num_items == 3
    assert result.degraded_fidelity.token_kl_nats.value > 0.1
    assert result.recovered_fidelity is not None
    assert result.recovered_fidelity.token_kl_nats.value == pytest.approx(0, abs=1e-6)  # the same weights
    assert result.tasks[0].remaining is not None
    assert result.tasks[0].remaining.value == 0
    assert len(result.generations) == 4
    for generation in result.generations:
        assert generation.recovered == generation.reference != generation.degraded
    assert labels["recovered: science"] == (3, 3)
    scores = ModelScores.read(result_path(tmp_path / "out" / "degraded"))
    assert scores.model == inputs.degraded
    assert ModelScores.read(result_path(tmp_path / "out" / "reference")).fidelity is None


def test_without_a_recovered_model(config: Evaluate, inputs: EvaluateInputs, tmp_path: Path) -> None:
    alone = EvaluateInputs(inputs.reference, inputs.degraded, dtype=torch.float32)
    result = run(config, alone, tmp_path / "out")
    assert result.recovered_fidelity is None
    assert result.generations[0].recovered is None
    assert result.tasks[0].recovered is None


def test_a_rerun_scores_only_what_changed(
    config: Evaluate, inputs: EvaluateInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[str, str]] = []
    real = stage.score_task

    def counting(model, task, *rest):
        scored.append((Path(model.name).name, task))
        return real(model, task, *rest)

    monkeypatch.setattr(stage, "score_task", counting)
    first = run(config, inputs, tmp_path / "out")
    assert len(scored) == 6
    scored.clear()
    again = run(config, inputs, tmp_path / "out")
    assert scored == []
    assert again.tasks == first.tasks
    (tmp_path / "out/recovered/science.json").write_text('{"key"')  # cut off
    weights = Path(inputs.degraded) / "model.safetensors"
    os.utime(weights, ns=(0, 0))  # as if it had been written again
    run(config, inputs, tmp_path / "out")
    assert scored == [("degraded", "arc_easy"), ("degraded", "science"), ("recovered", "science")]
    scored.clear()
    run(config.model_copy(update={"limit": 2}), inputs, tmp_path / "out")
    assert len(scored) == 6


def test_mistakes_are_found_before_any_model_is_loaded(
    config: Evaluate, inputs: EvaluateInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recoup.evaluate import harness

    monkeypatch.setattr(stage, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(harness, "known_names", lambda: frozenset({"gsm8k"}))
    with pytest.raises(ConfigError, match="did you mean 'arc_easy'"):
        run(config.model_copy(update={"tasks": ("arc_esay",)}), inputs, tmp_path / "out")
    with pytest.raises(DataError, match=r"eval_507_paper\.jsonl: no such file"):
        run(config.model_copy(update={"data": str(tmp_path)}), inputs, tmp_path / "out")
    with pytest.raises(SourceError, match="no such model"):
        run(config, EvaluateInputs(inputs.reference, str(tmp_path / "gone")), tmp_path / "out")


def test_one_model_alone(
    config: Evaluate, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, data_folder: Path
) -> None:
    monkeypatch.setenv("HERE", str(data_folder))
    tasks = Evaluate(tasks=("tooluse", "science"), data="$HERE", limit=2, seed=3)
    found = score(load(str(tiny_model)), tasks)
    assert [(task.task, task.metric, len(task.scores)) for task in found.tasks] == [
        ("tooluse", "correct", 2),
        ("science", "correct", 2),
    ]
    assert set(found.tasks[0].samples[0]) >= {"completion", "gold", "json_valid", "right_tool", "right_arguments"}
    assert json.loads(found.model_dump_json())["fidelity"] is None


def test_a_malformed_row_is_named(config: Evaluate, tiny_model: Path, data_folder: Path) -> None:
    file = data_folder / "tooluse_sdft/eval_97.jsonl"
    file.write_text(file.read_text() + '{"prompt": "no gold"}\n')
    with pytest.raises(DataError, match="row 5: not a row of tooluse"):
        score(load(str(tiny_model)), Evaluate(tasks=("tooluse",), data=str(data_folder)))
