"""What a recovery can be made of: terms, teachers, rollouts, memory; each in a short real run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recoup.config import Recover
from recoup.errors import TrainingError
from recoup.recover import learner
from recoup.recover.run import RecoverInputs, run
from recoup.results import RecoverResult
from tests.recover.conftest import PROMPTS


@pytest.fixture(scope="session")
def answer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with answers, in two groups."""
    path = tmp_path_factory.mktemp("answers") / "answers.jsonl"
    rows = [
        {"prompt": p, "completion": f"it is {i}", "group": "odd" if i % 2 else "even"} for i, p in enumerate(PROMPTS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def changed(config: Recover, **changes: Any) -> Recover:
    return Recover.model_validate(config.model_dump() | changes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n")[:-1]]


def texts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().split("\n")[:-1]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def recovered(config: Recover, damaged: Path, teachers: tuple[str, ...], folder: Path) -> RecoverResult:
    result = run(config, RecoverInputs(str(damaged), teachers, 0), folder)
    assert result.structure_exact
    return result


def test_supervised_fine_tuning_is_a_term(
    tiny_model: Path, damaged: Path, short: Recover, answer_file: Path, tmp_path: Path
) -> None:
    term = {"loss": "cross_entropy", "completions": "file", "prompts": str(answer_file), "num_prompts": 4}
    config = changed(short, terms=[term], steps=12)
    recovered(config, damaged, (str(tiny_model),), tmp_path)
    losses = [step["loss"] for step in metrics(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]  # four rows, twelve passes: learnt by heart
    assert {row["completion"] for row in texts(tmp_path)} <= {f"it is {i}<|im_end|>"[: 8 * 20] for i in range(24)} | {
        row["completion"] for row in texts(tmp_path) if row["completion"].startswith("it is")
    }
    assert metrics(tmp_path)[0]["phase"] == "off_policy"


def test_groups_choose_their_teacher(
    tiny_model: Path, damaged: Path, short: Recover, answer_file: Path, tmp_path: Path
) -> None:
    terms = [{"prompts": str(answer_file), "group": group} for group in ("odd", "even")]
    recovered(changed(short, terms=terms, steps=2), damaged, (str(tiny_model), str(damaged)), tmp_path)
    numbers = {term: {int(row["prompt"].split("number ")[1].split()[0]) % 2 for row in texts(tmp_path) if row["term"] == term} for term in (0, 1)}  # fmt: skip
    assert numbers == {0: {1}, 1: {0}}
    # the second teacher is the student as it was: nothing to learn from it at the first step
    assert metrics(tmp_path)[0]["term_nats"][1] == pytest.approx(0, abs=1e-5)
    assert metrics(tmp_path)[0]["term_nats"][0] > 0.01


@pytest.mark.parametrize("teacher", ["ema", "start"])
def test_a_teacher_of_the_students_own(
    teacher: str, tiny_model: Path, damaged: Path, short: Recover, answer_file: Path, tmp_path: Path
) -> None:
    term = {"prompts": str(answer_file), "teacher": teacher, "demonstration": True, "num_prompts": 8}
    other = {"prompts": str(answer_file), "num_prompts": 8}
    config = changed(short, terms=[term, other], steps=6, skip_tokens=1, precision="bf16")
    inputs = RecoverInputs(str(damaged), (teacher, str(tiny_model)), 0)
    run(config, inputs, tmp_path / "whole")
    # the teacher saw an answer that the student did not: it says something else from the first step
    assert metrics(tmp_path / "whole")[0]["term_nats"][0] > 1e-3

    def interrupt(_label: str, done: int, total: int) -> None:
        if (done, total) == (3, 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, inputs, tmp_path / "stopped", interrupt)
    run(config, inputs, tmp_path / "stopped")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "stopped")[name]), name


ROLLOUTS = [
    {"ahead": 3}, {"uses": 2}, {"ahead": 2, "uses": 2}, {"ahead": 2, "asynchronous": True},
    {"backend": "transformers"}, {"start_tokens": 3, "grow_until": 1.0}, {"ahead": 2, "importance_cap": 2.0},
]  # fmt: skip


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=str)
def test_rollouts_of_every_kind_resume_exactly(
    rollout: dict[str, Any], tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    config = changed(
        short, rollout=short.rollout.model_dump() | rollout, bootstrap={"max_steps": 1}, checkpoint_every=1
    )
    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    run(config, inputs, tmp_path / "whole")
    steps = metrics(tmp_path / "whole")
    span = rollout.get("ahead", 1) * rollout.get("uses", 1) * (2 if rollout.get("asynchronous") else 1)
    assert max(step["staleness"] or 0 for step in steps) <= span - 1
    if "importance_cap" in rollout:
        assert all(0 < step["effective_share"] <= 1 + 1e-6 for step in steps if step["phase"] == "on_policy")
    if "start_tokens" in rollout:
        assert steps[0]["completion_tokens_mean"] <= 3 < steps[-1]["completion_tokens_mean"]
    for stop in (2, 3, 5):

        def interrupt(_label: str, done: int, total: int, at: int = stop) -> None:
            if (done, total) == (at, 6):
                raise KeyboardInterrupt

        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(config, inputs, folder, interrupt)
        run(config, inputs, folder)
        assert texts(folder) == texts(tmp_path / "whole")
        for name, tensor in weights(tmp_path / "whole").items():
            assert torch.equal(tensor, weights(folder)[name]), (stop, name)


def test_drawing_ahead_skips_no_prompt_and_changes_no_seed(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    """With the learning rate next to nothing the student does not move, so whoever draws ahead draws the same."""
    still = changed(short, learning_rate=1e-30, bootstrap={"max_steps": 0})
    rows = {}
    for name, rollout in {"strict": {}, "ahead": {"ahead": 4}, "twice": {"uses": 2}}.items():
        config = changed(still, rollout=still.rollout.model_dump() | rollout)
        recovered(config, damaged, (str(tiny_model),), tmp_path / name)
        rows[name] = (
            [row["prompt"] for row in texts(tmp_path / name)],
            [r["completion"] for r in texts(tmp_path / name)],
        )
    assert rows["strict"] == rows["ahead"]
    prompts = rows["twice"][0]
    assert prompts[:4] == prompts[4:8]
    assert prompts[8:12] == rows["strict"][0][4:8]  # the second batch, not the third


def test_hidden_states_beside_the_divergence(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    for measure in ("cka", "relative_l2"):
        config = changed(
            short, hidden_states={"measure": measure, "weight": 0.5, "layers": (0, 1)}, steps=2, micro_batch_size=4,
            rollout=short.rollout.model_dump() | {"max_tokens": 24}, batch_size=8,
        )  # fmt: skip
        recovered(config, damaged, (str(tiny_model),), tmp_path / measure)
        first = metrics(tmp_path / measure)[0]
        assert first["hidden_loss"] > 0
        assert first["loss"] == pytest.approx(first["kl"] + first["hidden_loss"], rel=1e-4)


def test_balanced_terms_stand_as_their_weights(
    tiny_model: Path, damaged: Path, short: Recover, answer_file: Path, tmp_path: Path
) -> None:
    terms = [
        {"prompts": str(answer_file)},
        {"loss": "cross_entropy", "completions": "file", "prompts": str(answer_file)},
    ]
    config = changed(short, terms=terms, balance="gradient_norm", steps=3)
    recovered(config, damaged, (str(tiny_model), str(tiny_model)), tmp_path)
    norms = json.loads((tmp_path / "state" / "position.json").read_text())["position"]["balance"]["log_norms"]
    assert norms[1] > norms[0]  # answers that the model would not give pull harder than its own earlier self


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_memory_settings_change_no_gradient(
    optimizer: str, tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    results = []
    for name, memory in {"plain": {}, "spare": {"gradient_checkpointing": True, "offload_activations": True}}.items():
        config = changed(short, memory={"optimizer": optimizer} | memory, precision="bf16")
        results.append(recovered(config, damaged, (str(tiny_model),), tmp_path / name))
    first, second = weights(tmp_path / "plain"), weights(tmp_path / "spare")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    moments = 8 if optimizer == "adamw" else 1
    assert (results[0].optimizer_bytes or 0) <= moments * (results[0].num_trained or 0) + 4096


def test_micro_batches_shrink_when_memory_runs_out(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = learner.completion_hidden

    def limited(model: Any, rollouts: Any) -> torch.Tensor:
        if len(rollouts.tokens_BT) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return forward(model, rollouts)

    inputs = RecoverInputs(str(damaged), (str(tiny_model),), 0)
    config = changed(short, bootstrap={"max_steps": 0}, micro_batch_size=4)
    run(changed(config, micro_batch_size=1), inputs, tmp_path / "small")
    monkeypatch.setattr(learner, "completion_hidden", limited)
    result = run(config, inputs, tmp_path / "shrunk")
    assert result.micro_batch_size == 1
    for name, tensor in weights(tmp_path / "small").items():
        assert torch.equal(tensor, weights(tmp_path / "shrunk")[name]), name
    with pytest.raises(torch.OutOfMemoryError):
        run(changed(config, memory={"shrink_micro_batch": False}), inputs, tmp_path / "stubborn")


def test_a_collapse_is_an_error_in_one_sentence(
    tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path
) -> None:
    """A bound that random text breaks by itself: entropy may not fall below its first value at all."""
    guards = {"min_entropy": 1.0, "window": 1, "max_roll_backs": 0}
    config = changed(short, steps=40, guards=guards, bootstrap={"max_steps": 0}, learning_rate=5e-2)
    with pytest.raises(TrainingError, match=r"mean entropy .* guards.min_entropy allows 100%"):
        run(config, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path)


def test_teachers_are_counted(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    result = recovered(changed(short, steps=1), damaged, (str(tiny_model),), tmp_path)
    size = sum(t.numel() for t in load_file(tiny_model / "model.safetensors").values()) * 4
    assert result.teacher_bytes == pytest.approx(size, rel=0.05)  # buffers count too
