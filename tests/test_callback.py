"""Looks from inside a transformers Trainer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from recoup.callback import RecoupCallback
from recoup.errors import ConfigError, SourceError
from recoup.models.load import load
from recoup.results import ProbeRecord
from tests.conftest import save_tiny

STEPS = 6


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"what does {i} mean to you" for i in range(80)))
    return str(path)


def trainer(model: Any, folder: Path, **settings: Any) -> Trainer:
    """A trainer on one sequence of noise, which harms."""
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=0.05, logging_steps=3, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    tokens = [7 + i * 31 % 200 for i in range(16)]
    rows = [{"input_ids": tokens, "labels": tokens, "attention_mask": [1] * 16}] * 16
    return Trainer(model, arguments, train_dataset=rows, **settings)


def model_at(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def callback(teacher: Path, prompts: str, folder: Path, **changes: Any) -> RecoupCallback:
    settings: dict[str, Any] = {"every": 2, "prompts": prompts, "num_prompts": 12, "max_tokens": 8, **changes}
    return RecoupCallback(str(teacher), folder / "looks" / "probe.jsonl", **settings)


def lines(folder: Path) -> list[ProbeRecord]:
    text = (folder / "looks" / "probe.jsonl").read_text()
    return [ProbeRecord.model_validate_json(line) for line in text.splitlines()]


def test_a_trainer_is_looked_at(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    looks = callback(tiny_model, prompts, tmp_path)
    watched = trainer(model_at(tiny_model), tmp_path / "watched", callbacks=[looks])
    watched.train()
    records = lines(tmp_path)
    assert [record.step for record in records] == [0, 2, 4, 6]
    assert records[0].token_kl_nats.value == pytest.approx(0, abs=1e-6)
    assert records[0].linear_cka == pytest.approx((1, 1), abs=1e-5)
    assert records[-1].token_kl_nats.value > 0.1
    logged = {row["step"]: row for row in watched.state.log_history if "recoup/token_kl" in row and "loss" not in row}
    assert [logged[record.step]["recoup/token_kl"] for record in records] == [r.token_kl_nats.value for r in records]
    assert logged[6]["recoup/cka_min"] == min(records[-1].linear_cka) <= logged[6]["recoup/cka_mean"] < 1
    # and the training is that of a trainer that nobody looks at
    alone = trainer(model_at(tiny_model), tmp_path / "alone")
    alone.train()
    for (name, ours), theirs in zip(watched.model.named_parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_it_may_stop_a_trainer_that_harms(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    looks = callback(tiny_model, prompts, tmp_path, stop=True, patience=2)
    watched = trainer(model_at(tiny_model), tmp_path / "out", callbacks=[looks])
    watched.train()
    assert watched.state.global_step == 4
    assert looks.looks.stopped == ("newly damaged at step 4: all prompts, worse than at the start at 2 looks in a row")
    assert [record.step for record in lines(tmp_path)] == [0, 2, 4]


def test_attached_it_reaches_trackers_too(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            rows.append({**logs, "step": state.global_step})

    watched = trainer(model_at(tiny_model), tmp_path / "out", callbacks=[Tracker()])
    callback(tiny_model, prompts, tmp_path, every=3).attach(watched)
    watched.train()
    assert [row["step"] for row in rows if "recoup/token_kl" in row and "loss" not in row] == [0, 3, 6]
    assert [row["step"] for row in rows if "loss" in row] == [3, 6]  # the trainer's own figures are still there


def test_an_adapter_is_looked_at_as_it_computes(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    base = save_tiny("llama", tmp_path / "untied", tie_word_embeddings=False)
    adapted = peft.get_peft_model(model_at(base), config)
    looks = callback(base, prompts, tmp_path, every=3)
    trainer(adapted, tmp_path / "out", callbacks=[looks]).train()
    records = lines(tmp_path)
    assert records[0].token_kl_nats.value == pytest.approx(0, abs=1e-6)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "tokenizer.json").write_text((base / "tokenizer.json").read_text())
    again = callback(base, prompts, tmp_path / "again")
    assert records[-1].token_kl_nats.value > 1e-3
    trainer(merged.requires_grad_(True), tmp_path / "second", callbacks=[again]).train()
    assert lines(tmp_path / "again")[0].token_kl_nats.value == pytest.approx(records[-1].token_kl_nats.value, rel=1e-4)


def test_a_loaded_teacher_of_another_kind(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    wide = load(str(save_tiny("llama", tmp_path / "wide", seed=1, hidden_size=48, num_hidden_layers=3)))
    looks = RecoupCallback(wide, tmp_path / "probe.jsonl", every=5, prompts=prompts, num_prompts=4, max_tokens=8)
    trainer(model_at(tiny_model), tmp_path / "out", callbacks=[looks]).train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "probe.jsonl").read_text().splitlines()]
    assert steps == [0, 5, 6]


def test_what_is_refused(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_best_model_at_end"):
        RecoupCallback("teacher", keep_best=True)
    with pytest.raises(ConfigError, match="evry"):
        RecoupCallback("teacher", evry=3)
    looks = callback(tmp_path / "nowhere", prompts, tmp_path)
    with pytest.raises(SourceError):
        trainer(model_at(tiny_model), tmp_path / "out", callbacks=[looks]).train()


@pytest.mark.filterwarnings("ignore")  # TRL 1.16 calls transformers by old names
def test_trl(tiny_model: Path, prompts: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"say {i}", "completion": f" {i}" * 4} for i in range(16)]
    arguments = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=2, learning_rate=0.01, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, logging_steps=2,
    )  # fmt: skip
    looks = callback(tiny_model, prompts, tmp_path)
    loaded = load(str(tiny_model))
    watched = trl.SFTTrainer(
        model_at(tiny_model), arguments, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=loaded.tokenizer, callbacks=[looks],
    )  # fmt: skip
    watched.train()
    assert [record.step for record in lines(tmp_path)] == [0, 2, 4]
    assert any("recoup/token_kl" in row for row in watched.state.log_history)
