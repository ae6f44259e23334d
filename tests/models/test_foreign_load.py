"""Where a structure is found: declared, zeros, hub, adapters; and checkpoints that cannot be loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recoup.errors import SourceError
from recoup.models.load import load
from recoup.models.save import save
from recoup.structure.grids import IntegerGrid
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.models.conftest import rewritten
from tests.models.test_foreign_bitsandbytes import CONFIG, as_nf4

UP = "model.layers.0.mlp.up_proj.weight"


def changed(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model folder with other weights."""
    shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_plain_model_declares_nothing(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    assert not model.structure.constraints
    assert (model.structure_origin, model.path) == ("none declared", tiny_model)


def test_a_declared_structure_is_read(tiny_model: Path, tmp_path: Path) -> None:
    model = load(str(tiny_model))
    weight, grid = model.model.get_parameter(UP), IntegerGrid(4, 16, symmetric=True)
    constraint = Constraint(grid, grid.fit(weight.detach()))
    weight.data.copy_(constraint.project(weight.detach()))
    save(model, Structure({UP: constraint}), tmp_path / "student")
    student = load(str(tmp_path / "student"))
    assert list(student.structure.constraints) == [UP]
    assert student.structure_origin == "declared"


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_zeros_are_a_mask(tiny_models: dict[str, Path], tmp_path: Path, layout: str) -> None:
    name = "transformer.h.1.mlp.c_fc.weight" if layout == "gpt2" else UP

    def prune(tensors: dict[str, Tensor]) -> None:
        # two of every four along the inputs, which GPT-2 lays out along the rows
        weight_OI = tensors[name].T if layout == "gpt2" else tensors[name]
        weight_OI[:, 0::4] = 0
        weight_OI[:, 3::4] = 0

    student = load(str(changed(tiny_models[layout], tmp_path / "student", prune)))
    assert list(student.structure.constraints) == [name]
    assert student.structure.constraints[name].pattern == "2:4"
    assert student.structure_origin == "zeros of the weights (1 matrix)"
    assert verify(student.model, student.structure).exact


def test_stray_zeros_are_no_mask(tiny_model: Path, tmp_path: Path) -> None:
    def stray(tensors: dict[str, Tensor]) -> None:
        tensors[UP].flatten()[::25] = 0  # 4 %

    assert not load(str(changed(tiny_model, tmp_path / "student", stray))).structure.constraints


def test_a_student_on_the_hub_keeps_its_grid(wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict = {}

    def snapshot(repo: str, **settings: object) -> str:
        asked.update(settings, repo=repo)
        return str(rewritten(wide_model, tmp_path / "snapshot", CONFIG, as_nf4(double=False)))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    student = load("somebody/student-nf4@v1")
    assert (asked["repo"], asked["revision"]) == ("somebody/student-nf4", "v1")
    assert not any("bin" in pattern or "py" in pattern for pattern in asked["allow_patterns"])
    assert len(student.structure.constraints) == 14


def test_an_adapter_frees_what_it_moves(wide_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = rewritten(wide_model, tmp_path / "base", CONFIG, as_nf4(double=False))
    base = load(str(folder))
    adapted = get_peft_model(
        base.model, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(tmp_path / "adapter")
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    student = load(str(tmp_path / "adapter"))
    assert len(student.structure.constraints) == 12
    assert not any("q_proj" in name for name in student.structure.constraints)
    assert verify(student.model, student.structure).exact
    assert student.structure_origin.endswith("(14 matrices); free, moved by the adapter: 2 matrices")


def test_missing_weights_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    def lose(tensors: dict[str, Tensor]) -> None:
        del tensors[UP], tensors["model.norm.weight"]

    folder = changed(tiny_model, tmp_path / "student", lose)
    with pytest.raises(
        SourceError, match=r"2 weights are missing \(model\.layers\.0\.mlp\.up_proj\.weight, model\.norm"
    ):
        load(str(folder))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_file_is_one_line(wide_model: Path, tmp_path: Path, compressed: bool) -> None:
    folder = tmp_path / "student"
    if compressed:
        rewritten(wide_model, folder, CONFIG, as_nf4(double=False))
    else:
        shutil.copytree(wide_model, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="cannot load this model") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


def test_an_unknown_compression_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "student")
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "student" / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptqq"}})
    )
    with pytest.raises(SourceError, match="unknown compression 'gptqq'; did you mean 'gptq'"):
        load(str(tmp_path / "student"))


def test_code_beside_the_weights_is_not_run(wide_model: Path, tmp_path: Path) -> None:
    folder = rewritten(wide_model, tmp_path / "student", CONFIG, as_nf4(double=False))
    config = json.loads((folder / "config.json").read_text())
    trap = {"model_type": "trap", "auto_map": {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}}
    (folder / "config.json").write_text(json.dumps(config | trap))
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(SourceError, match="cannot load this model"):
        load(str(folder))
    assert not (tmp_path / "sprung").exists()


def test_other_weights_are_converted_anew(wide_model: Path, tmp_path: Path) -> None:
    folder = rewritten(wide_model, tmp_path / "student", CONFIG, as_nf4(double=False))
    before = load(str(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    norm, changed_norm = (m.model.get_parameter("model.norm.weight") for m in (before, load(str(folder))))
    assert torch.equal(changed_norm, norm + 1)
