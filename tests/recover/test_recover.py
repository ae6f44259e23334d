"""Recovery: it repairs, it stays on the structure, it resumes exactly, and bad input loses nothing."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recoup.config import Magnitude, Quantize, Recover
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.divergence import fused
from recoup.errors import DataError, SourceError, TrainingError
from recoup.evaluate.fidelity import token_damage
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.recover import learner
from recoup.recover.run import RecoverInputs, run
from recoup.results import RecoverResult
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from recoup.training.optimizer import Schedule, learning_rate
from tests.conftest import LAYOUTS, save_tiny


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def changed(config: Recover, **changes: object) -> Recover:
    return Recover.model_validate(config.model_dump() | changes)


def token_kl(teacher: Path, student: Path) -> float:
    """Mean KL on text that no one trained on."""
    reference = load(str(teacher))
    ids = [reference.tokenizer(f"a held-out prompt, number {i}").input_ids for i in range(16)]
    rollouts = sample(reference, ids, Sampling(12, temperature=1.0, seed=99))
    return token_damage(reference, load(str(student)), rollouts, num_bootstrap=10, seed=0).token_kl_nats.value


def test_a_quantized_student_recovers_on_its_grid(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    longer = changed(short, steps=40, batch_size=8, learning_rate=3e-3, rollout={"max_tokens": 12, "temperature": 1.0})
    result = run(longer, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path)
    assert result.structure_exact
    assert token_kl(tiny_model, Path(result.checkpoint)) < 0.9 * token_kl(tiny_model, damaged)
    assert result.on_policy_from_step == 2
    saved = load(result.checkpoint)
    structure = read_structure(Path(result.checkpoint))
    assert len(structure.constraints) == 14
    assert verify(saved.model, structure).exact
    # the grid is still three bits: at most seven values in every group of sixteen
    codes = saved.model.get_parameter("model.layers.0.mlp.up_proj.weight").view(-1, 16)
    assert max(len(row.unique()) for row in codes) <= 7
    lines = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().split("\n")[:-1]]
    assert len(lines) == 40 * 8
    assert {line["phase"] for line in lines if line["step"] < 2} == {"off_policy"}
    assert {line["phase"] for line in lines if line["step"] >= 2} == {"on_policy"}
    assert RecoverResult.read(tmp_path / "result.json") == result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_every_layout_and_divergence(
    tiny_models: dict[str, Path], layout: str, divergence: str, short: Recover, tmp_path: Path
) -> None:
    teacher = str(tiny_models[layout])
    sparse = degrade(Magnitude(sparsity=0.5), DegradeInputs(teacher, 0), tmp_path / "damaged").checkpoint
    config = changed(short, divergence=divergence, steps=4, bootstrap={"max_steps": 0})
    result = run(config, RecoverInputs(sparse, (teacher,), 0), tmp_path / "recover")
    assert result.structure_exact
    assert result.on_policy_from_step == 0
    checked = verify(load(result.checkpoint).model, read_structure(Path(result.checkpoint)))
    assert checked.exact
    assert checked.sparsity == pytest.approx(0.5, abs=0.01)


def test_weights_that_were_rounded_train_from_where_they_were(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    said: list[str] = []
    config = changed(short, steps=2, bootstrap={"max_steps": 0})
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    without = run(config, inputs, tmp_path / "without")
    rounded = replace(inputs, before=str(tiny_model))
    found = run(config, rounded, tmp_path / "with", lambda label, _done, _total: said.append(label))
    assert "student: 14 rounded weight matrices train from where they were before" in said
    assert found.structure_exact
    assert found.first_loss_nats == without.first_loss_nats  # the same student
    assert any(
        not torch.equal(w, weights(tmp_path / "without")[name]) for name, w in weights(tmp_path / "with").items()
    )


def test_the_teacher_itself_has_nothing_to_learn(tiny_model: Path, short: Recover, tmp_path: Path) -> None:
    result = run(changed(short, steps=1), RecoverInputs(str(tiny_model), (str(tiny_model),), 0), tmp_path)
    assert result.first_loss_nats == pytest.approx(0, abs=1e-6)
    before = load_file(tiny_model / "model.safetensors")
    # Adam turns rounding errors into steps of the learning rate at most
    assert all((before[name] - tensor).abs().max() <= 1.01e-2 for name, tensor in weights(tmp_path).items())


def test_micro_batches_do_not_change_the_gradient(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    results = []
    for size in (1, 8):
        inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
        config = changed(short, steps=1, batch_size=8, micro_batch_size=size)
        results.append(run(config, inputs, tmp_path / str(size)))
        metrics = json.loads((tmp_path / str(size) / "metrics.jsonl").read_text())
        results.append(metrics["grad_norm"])
    assert results[0].first_loss_nats == pytest.approx(results[2].first_loss_nats, rel=1e-5)
    assert results[1] == pytest.approx(results[3], rel=1e-4)


def test_two_teachers_with_weights(
    tiny_models: dict[str, Path], damaged: Path, short: Recover, prompt_file: Path, tmp_path: Path
) -> None:
    other = save_tiny("llama", tmp_path / "expert", seed=5)
    terms = [{"prompts": str(prompt_file), "weight": 3.0}, {"prompts": str(prompt_file), "weight": 1.0}]
    config = changed(short, terms=terms, steps=2)
    inputs = RecoverInputs(str(damaged), (str(tiny_models["llama"]), str(other)), 0)
    result = run(config, inputs, tmp_path / "out")
    assert result.teachers == inputs.teachers
    lines = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").read_text().split("\n")[:-1]]
    assert [line["term"] for line in lines if line["step"] == 0] == [0, 0, 1, 1]


def test_overlap_decides_when_the_student_writes(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    rule = {"overlap": 0.05, "check_every": 1, "max_steps": 100}
    able = run(
        changed(short, steps=2, bootstrap=rule), RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path / "able"
    )
    assert able.on_policy_from_step == 0
    rule = {"overlap": 1.0, "check_every": 1, "max_steps": 100}
    never = run(
        changed(short, steps=2, bootstrap=rule), RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path / "never"
    )
    assert never.on_policy_from_step is None
    measured = [
        json.loads(line)["overlap"] for line in (tmp_path / "never" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert all(0 < value < 1 for value in measured)


def test_stopped_runs_end_like_the_unstopped_one(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    run(short, inputs, tmp_path / "whole")
    for stop in (1, 2, 3, 5):  # before, at and after a checkpoint

        def interrupt(label: str, done: int, total: int, at: int = stop) -> None:
            if total == short.steps and done == at:
                raise KeyboardInterrupt

        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(short, inputs, folder, interrupt)
        assert not (folder / "result.json").exists()
        run(short, inputs, folder)
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.equal(tensor, weights(folder)[name]), (stop, name)
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]
        assert steps == list(range(6))
        assert len((folder / "rollouts.jsonl").read_text().split("\n")[:-1]) == 6 * 4


def test_killed_process_continues_exactly(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    config = changed(short, steps=12)
    run(config, inputs, tmp_path / "whole")
    folder = tmp_path / "killed"
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom recoup.config import Recover\nfrom recoup.recover.run import RecoverInputs, run\n"
        "run(Recover.model_validate_json(sys.argv[1]), RecoverInputs(sys.argv[2], (sys.argv[3],), 0), Path(sys.argv[4]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, config.model_dump_json(), str(damaged), str(tiny_model), str(folder)],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (folder / "state" / "position.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "result.json").exists(), "the run ended before it was killed"
    run(config, inputs, folder)
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(folder)[name]), name


def test_other_tokenizer_is_refused(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "other")
    text = (folder / "tokenizer.json").read_text()
    tokens = json.loads(text)
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(SourceError, match="tokenizers disagree"):
        run(short, RecoverInputs(str(damaged), (str(folder),), 0), tmp_path / "out")


def test_padded_vocabulary_is_aligned(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    wide = save_tiny("llama", tmp_path / "wide", vocab_size=272)
    result = run(changed(short, steps=1), RecoverInputs(str(damaged), (str(wide),), 0), tmp_path / "out")
    assert result.structure_exact


def poison(monkeypatch: pytest.MonkeyPatch, passes: range) -> None:
    """Make the loss NaN in these forward passes of the run; there are two micro-batches a step."""
    count = itertools.count()

    def poisoned(*arguments: Any) -> fused.Compared:
        found = fused.compare(*arguments)
        return replace(found, loss=found.loss * float("nan")) if next(count) in passes else found

    monkeypatch.setattr(learner, "compare", poisoned)


def test_nan_loss_keeps_the_last_checkpoint(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(6, 100))  # step 3; then step 2, which is the first after the checkpoint
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan.*after 2 roll-backs"):
        run(short, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path)
    assert json.loads((tmp_path / "state" / "position.json").read_text())["position"]["step"] == 2
    assert not (tmp_path / "checkpoint").exists()


def test_nan_before_any_checkpoint_is_told(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 4))
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan.*no checkpoint yet"):
        run(short, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path)


def test_a_bad_step_goes_back_and_on_more_slowly(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    poison(monkeypatch, range(6, 7))  # the fourth step, once
    result = run(short, inputs, tmp_path)
    assert (result.roll_backs, result.steps) == (1, 6)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]]
    assert [step["step"] for step in steps] == list(range(6))
    # steps 0 and 1 stand in the checkpoint; step 2 was taken again at half its learning rate
    assert [step["roll_backs"] for step in steps] == [0, 0, 1, 1, 1, 1]
    schedule = Schedule(6, 0, short.learning_rate, short.min_learning_rate_fraction)
    assert steps[2]["learning_rate"] == pytest.approx(learning_rate(schedule, 2) / 2)
    assert steps[1]["learning_rate"] == pytest.approx(learning_rate(schedule, 1))


def test_too_long_and_empty_prompts_are_one_line(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    with pytest.raises(DataError, match="none of 8 prompts fits 5 tokens"):
        run(changed(short, rollout={"max_tokens": 8, "max_prompt_tokens": 5}), inputs, tmp_path / "a")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="holds no train prompt"):
        run(changed(short, terms=[{"prompts": str(empty)}]), inputs, tmp_path / "b")


def test_nf4_student_on_policy_in_bf16(tiny_model: Path, short: Recover, tmp_path: Path) -> None:
    student = degrade(Quantize(format="nf4"), DegradeInputs(str(tiny_model), 0), tmp_path / "nf4").checkpoint
    config = changed(short, precision="bf16", steps=3, skip_tokens=2)
    assert run(config, RecoverInputs(student, (str(tiny_model),), 0), tmp_path / "out").structure_exact
