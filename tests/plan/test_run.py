"""A whole plan on tiny models: nothing loaded, in about a second; records; how far off it was; what a terminal shows."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from recoup.config import RunConfig
from recoup.errors import DataError
from recoup.plan import rates, setup
from recoup.plan import run as plan_run
from recoup.plan.past import compared
from recoup.plan.record import MachineRates, PlanResult, StepTime
from recoup.plan.run import run
from recoup.plan.show import planned
from recoup.results import RecoverResult, RecoverStep

RATES = MachineRates(device="a machine", gemm_flops=1e12, bytes_per_second=1e10)


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_run, "machine_rates", lambda dtype: RATES)


def config(model: Path, **recover: object) -> RunConfig:
    tree = {"name": "tiny", "model": str(model), "degrade": [{"type": "quantize", "bits": 4}], "recover": recover}
    return RunConfig.model_validate(tree)


def test_a_plan_loads_no_weight(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    result = run(config(tmp_path))
    assert result.num_parameters == result.num_trained > 0
    assert result.total_seconds == pytest.approx(result.steps * result.step.total)
    always = sum(part.num_bytes for part in result.parts if part.phase == "always")
    worst = sum(part.num_bytes for part in result.parts if part.phase == result.peak_phase)
    assert result.peak_bytes == always + worst
    assert PlanResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_each_saving_saves(tiny_models: dict[str, Path], layout: str) -> None:
    def peak(**recover: object) -> int:
        settings = config(tiny_models[layout], **recover).recover
        return plan_run.predicted_peak(models, settings)

    models = setup.models_of(config(tiny_models[layout]))
    full = peak()
    assert peak(micro_batch_size=1) < full
    assert peak(memory={"gradient_checkpointing": True}) < full
    assert peak(memory={"optimizer": "adafactor"}) < peak(memory={"optimizer": "adamw_8bit"})
    assert peak(teachers={"hold": "int8"}) < full
    assert peak(rollout={"max_tokens": 128}) > full
    assert peak(train={"what": "norms"}) < full


def test_every_kind_of_teacher_is_counted_once(tiny_models: dict[str, Path]) -> None:
    terms = [
        {},
        {"teacher": "model"},
        {"teacher": "ema"},
        {"teacher": "start"},
        {"teacher": str(tiny_models["qwen2"])},
        {"loss": "cross_entropy", "completions": "file", "prompts": "x.jsonl", "teacher": "./not/there"},
    ]
    models = setup.models_of(config(tiny_models["llama"], terms=terms))
    assert set(models.teachers) == {"model", str(tiny_models["qwen2"])}
    assert set(models.self_teachers) == {"ema", "start"}
    settings = config(tiny_models["llama"], terms=terms, train={"what": "norms"}).recover
    named = {teacher.name: teacher for teacher in setup.teachers_of(models, settings)}
    norms = sum(weight.size for weight in models.student.weights if weight.is_vector)
    assert named["ema"].numbers == named["start"].numbers == norms  # what does not train is the student's own
    assert named["model"].numbers == models.student.num_parameters


def test_a_students_declared_structure_is_read(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    name = "model.layers.0.mlp.down_proj.weight"  # 32 × 48
    weights = {name: {"grid": {"format": "int", "group_size": 16}, "mask_shape": None}}
    (tmp_path / "structure.json").write_text(json.dumps({"schema_version": 1, "weights": weights, "shapes": {}}))
    chosen = RunConfig(name="own", model=str(tiny_model), student=str(tmp_path))
    models = setup.models_of(chosen)
    assert setup.trained_of(models, chosen.recover).latent == 32 * 48


def test_what_does_not_fit_is_said_with_what_would(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_run, "available_bytes", lambda: 2**20)
    result = run(config(tiny_model))
    assert result.fits is False
    assert len(result.alternatives) > 2
    assert all(choice.peak_bytes < result.peak_bytes for choice in result.alternatives)
    shown = text(result)
    assert "DOES NOT FIT" in shown
    assert "recover.memory.gradient_checkpointing=true" in shown


def test_where_nobody_knows_what_is_free_nothing_is_claimed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_run, "available_bytes", lambda: 0)
    result = run(config(tiny_model))
    assert result.fits is None
    assert "free" not in text(result)


def past_folder(root: Path, model: Path) -> Path:
    folder = root / "a_run" / "recover"
    folder.mkdir(parents=True)
    (root / "a_run" / "config.yaml").write_text(yaml.safe_dump(config(model).model_dump(mode="json")))
    result = RecoverResult(
        student="s", teachers=("t",), checkpoint="c", steps=3, num_tokens=1, num_prompts=1, on_policy_from_step=0,
        first_loss_nats=1, last_loss_nats=1, structure="", structure_exact=True, seconds=1, peak_memory_bytes=1000,
        teacher_bytes=1,
    )  # fmt: skip
    (folder / "result.json").write_text(result.model_dump_json())
    steps = [
        RecoverStep(
            step=step, phase="on_policy", loss=1, grad_norm=1, learning_rate=1, num_tokens=1, completion_tokens_mean=1,
            seconds_sampling=seconds, seconds_teacher=1, seconds_student=4, seconds_optimizer=0.5,
        )
        for step, seconds in enumerate((100, 3, 2))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(step.model_dump_json() + "\n" for step in steps))
    return root


def test_past_ratios_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    root = past_folder(tmp_path, tiny_model)
    found = compared(root / "a_run", 500, StepTime(sampling=5, teacher=1, student=1, optimizer=1.25))
    # means without the first step 2.5, 1, 4, 0.5: 8 s a step; predicted 5 + 1 + (1 + 1.25) = 8.25
    assert (found.peak_ratio, found.sampling_ratio, found.teacher_ratio, found.student_ratio) == (0.5, 2, 1, 0.5)
    assert (found.measured_step_seconds, found.step_ratio) == (8, 8.25 / 8)


def test_past_runs_are_compared_where_there_are_any(tiny_model: Path, tmp_path: Path) -> None:
    result = run(config(tiny_model), past_folder(tmp_path, tiny_model))
    assert [past.name for past in result.past] == ["a_run"]
    assert result.past[0].peak_ratio == pytest.approx(result.peak_bytes / 1000)
    assert "a_run" in text(result)
    assert run(config(tiny_model), tmp_path / "absent").past == ()


def test_a_run_of_an_earlier_engine_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    root = past_folder(tmp_path, tiny_model)
    path = root / "a_run" / "recover" / "result.json"
    path.write_text(path.read_text().replace('"teacher_bytes":1', '"teacher_bytes":null'))
    assert run(config(tiny_model), root).past == ()


def test_a_past_run_whose_model_is_gone_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    root = past_folder(tmp_path, tmp_path / "gone")
    assert run(config(tiny_model), root).past == ()
    (root / "a_run" / "config.yaml").write_text("name: [")
    with pytest.raises(DataError, match="not a readable config"):
        run(config(tiny_model), root)


def test_the_machine_is_measured_in_seconds_and_once() -> None:
    found = rates.machine_rates(torch.float32)
    assert rates.machine_rates(torch.float32) is found
    assert 1e8 < found.gemm_flops < 1e16
    assert 1e8 < found.bytes_per_second < 1e14


def test_text_of_configs_is_escaped(tiny_model: Path) -> None:
    assert "[bold]" in text(run(config(tiny_model)).model_copy(update={"student": "[bold]"}))


def test_a_published_model_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    """Qwen2.5-7B: 7,615,616,512 parameters; 4 + 2 + 8 bytes of each for weights, compute copy and moments, 2 of a teacher's."""
    fields = json.loads((tiny_model / "config.json").read_text()) | {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "vocab_size": 152064, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "head_dim": 128, "tie_word_embeddings": False, "layer_types": None,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    found = run(
        RunConfig(name="7b", model=str(tmp_path), student=str(tmp_path), recover=config(tmp_path, batch_size=4).recover)
    )
    assert found.num_parameters == 7_615_616_512
    sizes = {part.name: part.num_bytes / found.num_parameters for part in found.parts if part.phase == "always"}
    chosen = ("student, fp32", "compute copy, bf16", "adamw moments", "teacher model")
    assert [sizes[name] for name in chosen] == [4, 2, 8, 2]


def text(result: PlanResult) -> str:
    buffer = io.StringIO()
    planned(Console(file=buffer, width=140, force_terminal=False), result)
    return re.sub(r"\s+", " ", buffer.getvalue())
