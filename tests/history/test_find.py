"""Which checkpoints a folder, a run or a list holds, in which order, and what is said about the rest."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.history.find import find_checkpoints

Make = Callable[..., Path]


def names(folder: Path, **settings: int) -> list[str]:
    return [str(Path(name).relative_to(folder)) for name in find_checkpoints(folder, **settings).checkpoints]


def test_what_a_trainer_leaves(checkpoint: Make, tmp_path: Path) -> None:
    for step in (1000, 50, 200):  # by name 1000 comes before 200 and 50
        checkpoint(tmp_path / f"checkpoint-{step}")
    checkpoint(tmp_path)  # the last model, saved beside its checkpoints
    (tmp_path / "runs").mkdir()  # logs: no model, and nothing to say about it
    found = find_checkpoints(tmp_path)
    assert [Path(name).name for name in found.checkpoints[:-1]] == [
        "checkpoint-50",
        "checkpoint-200",
        "checkpoint-1000",
    ]
    assert found.checkpoints[-1] == str(tmp_path)
    assert found.left_out == ()
    assert names(tmp_path, last=2) == ["checkpoint-1000", "."]


def test_names_without_numbers_go_by_the_age_of_their_weights(checkpoint: Make, tmp_path: Path) -> None:
    checkpoint(tmp_path / "expert", age=10)
    checkpoint(tmp_path / "base", age=20)
    checkpoint(tmp_path / "alone-7", age=5)  # one number among names without: no order to go by
    checkpoint(tmp_path / "stage" / "checkpoint", age=1)  # a stage's folder holds its model inside
    assert names(tmp_path) == ["base", "expert", "alone-7", "stage/checkpoint"]


def test_a_run_in_the_order_of_its_config(checkpoint: Make, tmp_path: Path) -> None:
    base, run = checkpoint(tmp_path / "base"), tmp_path / "run"
    checkpoint(run / "recover" / "checkpoint", age=9)
    checkpoint(run / "degrade" / "quantize" / "checkpoint", age=99)
    checkpoint(run / "degrade" / "sft" / "checkpoint")
    checkpoint(run / "recover" / "state")  # what a stopped repair goes on from is no state of the model
    (run / "config.yaml").write_text(f"model: {base}\ndegrade:\n- type: sft\n- type: quantize\n- type: wanda\n")
    assert find_checkpoints(run).checkpoints == (
        str(base), str(run / "degrade/sft/checkpoint"), str(run / "degrade/quantize/checkpoint"), str(run / "recover/checkpoint"),
    )  # fmt: skip
    (run / "config.yaml").write_text(f"model: {tmp_path}/gone\nstudent: {base}\n")
    found = find_checkpoints(run)
    assert found.checkpoints == (str(base), str(run / "recover/checkpoint"))
    assert found.left_out == (f"{tmp_path}/gone left out: {tmp_path}/gone: no such model folder or GGUF file",)
    (run / "config.yaml").write_text("- a list")
    with pytest.raises(DataError, match=r"config\.yaml: not the config of a run"):
        find_checkpoints(run)


def test_every_folder_that_is_left_out_is_named_with_its_reason(checkpoint: Make, tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint-1")
    pickled = checkpoint(tmp_path / "checkpoint-2")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = checkpoint(tmp_path / "checkpoint-3") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])  # killed while it saved
    sharded = checkpoint(tmp_path / "checkpoint-4")
    parts = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(parts))
    (checkpoint(tmp_path / "checkpoint-5") / "tokenizer.json").unlink()
    (checkpoint(tmp_path / "checkpoint-6") / "config.json").unlink()
    adapter = checkpoint(tmp_path / "checkpoint-7")
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.bin").touch()
    (checkpoint(tmp_path / "checkpoint-8") / "model.safetensors").unlink()
    found = find_checkpoints(tmp_path)
    assert [Path(name).name for name in found.checkpoints] == ["checkpoint-1"]
    reasons = dict(line.removeprefix(f"{tmp_path}/").split(" left out: ") for line in found.left_out)
    assert [name[-1] for name in reasons] == list("2345678")
    pickles = "its weights are pickles, which recoup does not load; convert them with save_pretrained"
    assert reasons["checkpoint-2"] == reasons["checkpoint-7"] == pickles
    assert reasons["checkpoint-3"].startswith("model.safetensors was not written to its end")
    assert reasons["checkpoint-4"] == "1 of 2 weight files are missing (model-2.safetensors)"
    assert reasons["checkpoint-5"] == "it has no tokenizer; save the model's tokenizer into it"
    assert reasons["checkpoint-6"] == "it has neither config.json nor adapter_config.json"
    assert reasons["checkpoint-8"] == "it holds no .safetensors weights"


def test_an_adapter_is_a_checkpoint(checkpoint: Make, tmp_path: Path) -> None:
    adapter = checkpoint(tmp_path / "checkpoint-1")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_list_keeps_its_order(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = checkpoint(tmp_path / "far" / "b"), checkpoint(tmp_path / "lists" / "a")
    file = tmp_path / "lists" / "history.txt"
    file.write_text(f"# oldest first\n\n{far}\na\nsome-org/some-model@v1\n")
    monkeypatch.setenv("LISTS", str(file.parent))
    assert find_checkpoints(Path("$LISTS/history.txt")).checkpoints == (str(far), str(near), "some-org/some-model@v1")
    file.write_text(f"{far}\n\n./gone\n")
    with pytest.raises(DataError, match=r"history\.txt, line 3: \./gone: no such model"):
        find_checkpoints(file)
    (far / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"line 1: .* cannot be loaded: it has no tokenizer"):
        find_checkpoints(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        find_checkpoints(file)


def test_nothing_to_score(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        find_checkpoints(tmp_path / "gone")
    with pytest.raises(DataError, match=r"holds no checkpoint that can be loaded \(it has no subfolders with config"):
        find_checkpoints(tmp_path)
    (checkpoint(tmp_path / "checkpoint-1") / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"checkpoint-1 left out: it holds no \.safetensors weights"):
        find_checkpoints(tmp_path)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        find_checkpoints(tmp_path)
