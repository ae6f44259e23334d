"""Every method repairs, and is what its word says: SFT is plain cross-entropy, interpolation plain interpolation, none nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from recoup.config import RunConfig
from recoup.config.methods import METHODS, TRAINED
from recoup.config_file import parse
from recoup.errors import ConfigError
from recoup.methods import run as dispatch
from recoup.methods.run import RepairInputs, run
from recoup.models.load import load
from recoup.results import RecoverResult
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from tests.conftest import byte_tokenizer
from tests.methods.conftest import TASKS, tree

INT3 = [{"type": "quantize", "bits": 3, "group_size": 16}]
ON_POLICY_FROM = {"sdft": 0, "onpolicy": 1, "onpolicy_cka": 1, "lora": 1, "onpolicy_rounded": 1}  # others never
TOWARDS_THE_BASE = ("interpolate", "svd_repair", "onpolicy_interpolated")


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_every_method_has_its_work() -> None:
    assert dispatch.METHODS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", [method for method in TRAINED if method not in TOWARDS_THE_BASE])
def test_a_trained_method_repairs_on_the_structure(
    method: str, tiny_model: Path, quantized: Path, prompt_file: Path, task_file: Path, tmp_path: Path
) -> None:
    settings = tree(method, prompt_file, model=str(tiny_model), degrade=INT3, task_file=str(task_file))
    settings["recover"]["terms"][0]["num_prompts"] = 40
    states = {"model": str(tiny_model), "quantize": str(quantized)}
    result = run(parse(RunConfig, settings, "test"), RepairInputs(str(quantized), states), tmp_path)
    assert result == RecoverResult.read(tmp_path / "result.json")
    assert (result.method, result.steps, result.student) == (method, 2, str(quantized))
    assert result.on_policy_from_step == ON_POLICY_FROM.get(method)
    assert set(result.teachers) == ({"ema"} if method == "sdft" else {str(tiny_model)})
    repaired = load(result.checkpoint)
    structure = read_structure(Path(result.checkpoint))
    assert len(structure.constraints) == 14
    assert verify(repaired.model, structure).exact
    before, after = weights(quantized), weights(result.checkpoint)
    assert any(not torch.equal(before[name], after[name]) for name in before), "something was trained"


@pytest.mark.parametrize("method", ["sft", "replay", "sdft"])
def test_a_probe_watches_a_method_that_distils_no_checkpoint(
    method: str, tiny_model: Path, quantized: Path, prompt_file: Path, task_file: Path, tmp_path: Path
) -> None:
    """As given it would choose the student nearest to a teacher, of whom there is none."""
    settings = tree(method, prompt_file, model=str(tiny_model), degrade=INT3, task_file=str(task_file))
    settings["recover"]["probe"] = {"every": 1, "prompts": str(prompt_file), "num_prompts": 6, "max_tokens": 12}
    inputs = RepairInputs(str(quantized), {"model": str(tiny_model), "quantize": str(quantized)})
    result = run(parse(RunConfig, settings, "test"), inputs, tmp_path)
    assert len((tmp_path / "probe.jsonl").read_text().splitlines()) == 3  # at the start and after both steps
    assert result.best_step is None
    assert result.stopped is None


def test_words_for_states_are_resolved(prompt_file: Path, task_file: Path) -> None:
    degrade = [{"type": "sft", "train_file": str(task_file)}, *INT3]
    settings = tree("kd_offpolicy", prompt_file, degrade=degrade)
    settings["recover"]["terms"] = [{"prompts": str(prompt_file), "teacher": word} for word in ("model", None, "start")]
    config = parse(RunConfig, settings, "test")
    inputs = RepairInputs("damaged", {"model": "first", "sft": "second", "quantize": "damaged"})
    assert inputs.teachers(config, config.recover.terms) == ("first", "second", "start")


def test_sft_is_plain_cross_entropy(
    tiny_model: Path, tuned: Path, prompt_file: Path, task_file: Path, tmp_path: Path
) -> None:
    settings = tree("sft", prompt_file, model=str(tiny_model), student=str(tuned), task_file=str(task_file))
    rate, most = 1e-2, 8  # answers are cut at `rollout.max_tokens`, and end with <|im_end|> where they are not
    settings["recover"] |= {"steps": 1, "batch_size": 4, "learning_rate": rate, "max_grad_norm": 1e9}
    settings["recover"]["terms"][0]["num_prompts"] = 4
    result = run(parse(RunConfig, settings, "test"), RepairInputs(str(tuned), {"model": str(tiny_model)}), tmp_path)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tuned).eval(), byte_tokenizer()
    rows = [json.loads(line)["text"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    loss, count = torch.zeros(()), 0
    for text in rows:
        asked = tokenizer(
            f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
        ).input_ids
        answer = tokenizer(f"{TASKS[text]}<|im_end|>", add_special_tokens=False).input_ids[:most]
        logits_TV = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        loss = loss + cross_entropy(logits_TV, torch.tensor(answer), reduction="sum")
        count += len(answer)
    loss = loss / count
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()

    step = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert step["num_tokens"] == count
    assert step["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert step["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    before, after = weights(tuned), weights(result.checkpoint)
    for name, gradient in gradients.items():
        # AdamW's first step: both moments are the gradient's own, so each weight moves by the rate against its sign
        certain = gradient.abs() > 1e-4 * gradient.abs().max()
        moved = (after[name] - before[name])[certain]
        assert torch.allclose(moved, -rate * gradient.sign()[certain], rtol=2e-2), name


def test_none_is_the_student_where_it_lies(
    tiny_model: Path, quantized: Path, prompt_file: Path, tmp_path: Path
) -> None:
    config = parse(RunConfig, tree("none", prompt_file, model=str(tiny_model), degrade=INT3), "test")
    held = {name: tensor.clone() for name, tensor in weights(quantized).items()}
    result = run(config, RepairInputs(str(quantized), {"model": str(tiny_model)}), tmp_path)
    assert result.checkpoint == str(quantized)
    assert all(torch.equal(tensor, held[name]) for name, tensor in weights(result.checkpoint).items())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (result.method, result.steps, result.num_tokens, result.seconds) == ("none", 0, 0, 0)
    assert result.first_loss_nats is None
    assert result.structure_exact
    assert "int3" in result.structure


def interpolated(
    tmp_path: Path, teacher: str | None, tiny_model: Path, tuned: Path, prompts: Path, progress: Any = None
) -> RecoverResult:
    settings = tree("interpolate", prompts, model=str(tiny_model), student=str(tuned))
    settings["recover"]["terms"][0]["teacher"] = teacher
    inputs = RepairInputs(str(tuned), {"model": str(tiny_model)})
    return run(parse(RunConfig, settings, "test"), inputs, tmp_path, *([progress] if progress else []))


@pytest.mark.parametrize(("teacher", "share"), [(None, 0.8), ("start", 0.2)])
def test_interpolation_goes_where_the_objective_points(
    teacher: str | None, share: float, tiny_model: Path, tuned: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """Towards the base as far as is tried, where the base teaches; no further than must be, where the student does."""
    result = interpolated(tmp_path, teacher, tiny_model, tuned, prompt_file)
    assert str(result.note).startswith(f"share {share:g}: ")
    base, student = weights(tiny_model), weights(tuned)
    for name, tensor in weights(result.checkpoint).items():
        assert torch.allclose(tensor, (1 - share) * student[name] + share * base[name], atol=1e-6), name
    assert (result.method, result.steps, result.num_tokens, result.num_prompts) == ("interpolate", 0, 0, 8)
    assert result.seconds > 0
    assert result.peak_memory_bytes > 0
    assert RecoverResult.read(tmp_path / "result.json") == result


def test_base_and_student_as_teachers_meet_between_them(
    tiny_model: Path, tuned: Path, prompt_file: Path, tmp_path: Path
) -> None:
    settings = tree("interpolate", prompt_file, model=str(tiny_model), student=str(tuned))
    inputs = RepairInputs(str(tuned), {"model": str(tiny_model)})
    shares = []
    for weight in (0.02, 1.0, 50.0):  # of the base
        terms = [
            {"prompts": str(prompt_file), "teacher": t, "weight": w} for t, w in (("model", weight), ("start", 1.0))
        ]
        settings["recover"]["terms"] = terms
        result = run(parse(RunConfig, settings, "test"), inputs, tmp_path / str(weight))
        shares.append(float(str(result.note).split()[1].rstrip(":")))
    # KL grows with the square of the distance, s² from the student and w (1 − s)² from the base: least at s = w / (1 + w)
    assert shares[0] == 0.2
    assert shares[1] in (0.4, 0.6)
    assert shares[2] == 0.8


def test_rounding_keeps_the_format_and_is_nearer(
    tiny_model: Path, quantized: Path, tuned: Path, prompt_file: Path, tmp_path: Path
) -> None:
    settings = tree("rounding", prompt_file, model=str(tiny_model), degrade=INT3)
    settings["recover"]["terms"][0]["num_prompts"] = 40  # enough text; this model can write none
    states = {"model": str(tiny_model), "quantize": str(quantized)}
    result = run(parse(RunConfig, settings, "test"), RepairInputs(str(quantized), states), tmp_path / "a")
    found = re.search(r"^method gptq.*teachers (\S+) nats, the damaged student's (\S+)\)$", str(result.note))
    assert found is not None
    assert float(found[1]) < float(found[2])
    student, repaired = (read_structure(path).constraints for path in (quantized, Path(result.checkpoint)))
    assert {name: kept.grid for name, kept in repaired.items()} == {name: kept.grid for name, kept in student.items()}
    assert verify(load(result.checkpoint).model, read_structure(Path(result.checkpoint))).exact
    alone = tree("rounding", prompt_file, model=str(tiny_model), student=str(tuned))
    with pytest.raises(ConfigError, match="method rounding: no linear layer of the student's blocks is on a grid"):
        run(parse(RunConfig, alone, "test"), RepairInputs(str(tuned), {"model": str(tiny_model)}), tmp_path / "b")


def test_on_policy_from_where_interpolation_ends(
    tiny_model: Path, tuned: Path, prompt_file: Path, tmp_path: Path
) -> None:
    settings = tree("onpolicy_interpolated", prompt_file, model=str(tiny_model), student=str(tuned))
    settings["recover"]["budget"] = {"seconds": 1000}
    inputs = RepairInputs(str(tuned), {"model": str(tiny_model)})
    result = run(parse(RunConfig, settings, "test"), inputs, tmp_path / "both")
    alone = interpolated(tmp_path / "alone", None, tiny_model, tuned, prompt_file)
    start = RecoverResult.read(tmp_path / "both" / "start" / "result.json")
    for name, tensor in weights(start.checkpoint).items():
        assert torch.equal(tensor, weights(alone.checkpoint)[name]), name
    assert (result.method, result.steps, result.student) == ("onpolicy_interpolated", 2, str(tuned))
    assert result.note == alone.note
    assert result.seconds > start.seconds
    assert any(
        not torch.equal(weights(result.checkpoint)[name], tensor) for name, tensor in weights(start.checkpoint).items()
    )
    assert run(parse(RunConfig, settings, "test"), inputs, tmp_path / "both").steps == 2  # goes on with what is there
    settings["recover"]["budget"] = {"seconds": 1e-3}
    with pytest.raises(ConfigError, match=r"budget.seconds 0.001: interpolate alone took \d+ s; raise it"):
        run(parse(RunConfig, settings, "test"), inputs, tmp_path / "both")


def test_singular_values(tiny_model: Path, tuned: Path, prompt_file: Path, tmp_path: Path) -> None:
    config = parse(RunConfig, tree("svd_repair", prompt_file, model=str(tiny_model), student=str(tuned)), "test")
    result = run(config, RepairInputs(str(tuned), {"model": str(tiny_model)}), tmp_path)
    assert str(result.note).startswith("rank_share 0.03125: ")  # the nearer to the base, which teaches
    name = "model.layers.0.mlp.up_proj.weight"
    change = weights(result.checkpoint)[name] - weights(tiny_model)[name]
    assert torch.linalg.matrix_rank(change, atol=1e-4) == 1  # 32 / 32
    assert torch.equal(weights(result.checkpoint)["model.norm.weight"], weights(tiny_model)["model.norm.weight"])


def test_a_stopped_method_without_training_starts_over(
    tiny_model: Path, tuned: Path, prompt_file: Path, tmp_path: Path
) -> None:
    def interrupt(_label: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpolated(tmp_path / "stopped", None, tiny_model, tuned, prompt_file, interrupt)
    assert (tmp_path / "stopped" / "checkpoint").is_dir(), "a candidate was kept"
    assert not (tmp_path / "stopped" / "result.json").exists()
    again = interpolated(tmp_path / "stopped", None, tiny_model, tuned, prompt_file)
    fresh = interpolated(tmp_path / "fresh", None, tiny_model, tuned, prompt_file)
    assert again.note == fresh.note
    for name, tensor in weights(again.checkpoint).items():
        assert torch.equal(tensor, weights(fresh.checkpoint)[name]), name


@pytest.mark.parametrize("method", TOWARDS_THE_BASE)
def test_a_students_own_structure_is_found_out(
    method: str, tiny_model: Path, quantized: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """No config knows what a student that a user has lies on."""
    config = parse(RunConfig, tree(method, prompt_file, model=str(tiny_model), student=str(quantized)), "test")
    with pytest.raises(ConfigError, match=r"the student is compressed \(int3.*choose another method"):
        run(config, RepairInputs(str(quantized), {"model": str(tiny_model)}), tmp_path)
    assert not (tmp_path / "result.json").exists()
