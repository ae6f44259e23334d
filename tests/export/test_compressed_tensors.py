"""Checkpoints of compressed-tensors: what transformers loads from them is the trained model, to the last bit."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

pytest.importorskip("compressed_tensors")

from recoup.config import Export
from recoup.errors import ExportError
from recoup.export import readback
from recoup.export.compressed_tensors import write_compressed_tensors
from recoup.models.load import LanguageModel, load
from recoup.structure.grids import Grid, IntegerGrid, NF4Grid
from recoup.structure.grids.fp8 import FP8Grid
from recoup.structure.grids.mxfp4 import MXFP4Grid
from recoup.structure.grids.nvfp4 import NVFP4Grid
from recoup.structure.verify import verify
from tests.conftest import save_tiny
from tests.export.conftest import Pick, on_grids

CONFIG = Export(to="compressed-tensors")
EXACT: dict[str, Grid] = {
    "int4 groups": IntegerGrid(4, 32, symmetric=True),
    "int4 full range": IntegerGrid(4, 32, symmetric=True, full_range=True),
    "int4 asymmetric": IntegerGrid(4, 32, symmetric=False),
    "int4 asymmetric channels": IntegerGrid(4, None, symmetric=False),
    "int3": IntegerGrid(3, 16, symmetric=True),
    "int2 asymmetric": IntegerGrid(2, 16, symmetric=False),
    "int8 channels": IntegerGrid(8, None, symmetric=True),
    "fp8 channels": FP8Grid(),
    "fp8 tensor": FP8Grid(per_tensor=True),
    "fp8 groups": FP8Grid(16),
    "mxfp4": MXFP4Grid(),
}


def written(
    wide_model: Path, pick: Pick, folder: Path, config: Export = CONFIG
) -> tuple[LanguageModel, readback.Probe]:
    model = on_grids(wide_model, pick)
    probe = readback.probe(model)
    write_compressed_tensors(model, config, folder)
    return model, probe


def declared(folder: Path) -> dict:
    config: dict = json.loads((folder / "config.json").read_text())["quantization_config"]
    return config


@pytest.mark.parametrize("name", EXACT)
def test_transformers_reads_the_trained_model_back_bit_for_bit(name: str, wide_model: Path, tmp_path: Path) -> None:
    _, probe = written(wide_model, lambda _: EXACT[name], tmp_path)
    assert torch.equal(readback.by_transformers(tmp_path, probe.rollouts).logits_NV, probe.logits_NV)


def test_dequantized_on_load_it_is_the_trained_model_too(wide_model: Path, tmp_path: Path) -> None:
    from transformers import CompressedTensorsConfig

    model, probe = written(wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that the config of the file is used beside the one given
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True)
        )
    trained = dict(model.model.named_parameters())
    assert all(torch.equal(parameter, trained[name]) for name, parameter in loaded.named_parameters())
    assert torch.equal(readback._logits(loaded.eval(), probe.rollouts), probe.logits_NV)


def test_different_grids_and_free_layers_side_by_side(wide_model: Path, tmp_path: Path) -> None:
    grids = [IntegerGrid(4, 32, symmetric=True), FP8Grid(), None, IntegerGrid(8, None, symmetric=True)]
    _, probe = written(wide_model, lambda i: grids[i % 4], tmp_path)
    assert torch.equal(readback.by_transformers(tmp_path, probe.rollouts).logits_NV, probe.logits_NV)
    config = declared(tmp_path)
    assert config["format"] == "mixed-precision"
    assert {group["format"] for group in config["config_groups"].values()} == {"pack-quantized", "float-quantized"}
    assert config["config_groups"]["group_0"]["targets"][0] == "model.layers.0.self_attn.q_proj"
    assert "model.layers.0.self_attn.v_proj" in config["ignore"]


def test_the_config_says_what_vllm_asks_for(wide_model: Path, tmp_path: Path) -> None:
    written(wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path)
    config = declared(tmp_path)
    assert config["quant_method"] == "compressed-tensors"
    assert config["quantization_status"] == "compressed"
    assert config["format"] == "pack-quantized"
    assert config["ignore"] == ["lm_head"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["input_activations"] is None
    expected = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    assert {key: group["weights"][key] for key in expected} == expected
    assert "dequantize" not in config


def test_packed_bytes_by_hand(wide_model: Path, tmp_path: Path) -> None:
    """Eight int4 codes in a word of 32 bits, the first in the lowest bits, each plus 8."""
    model, _ = written(wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    stored = load_file(tmp_path / "model.safetensors")
    scale = stored[f"{name}.weight_scale"][0, 0]
    codes = (model.model.get_parameter(f"{name}.weight")[0, :8] / scale).round().int().tolist()
    word = sum((code + 8) << (4 * position) for position, code in enumerate(codes))
    assert int(stored[f"{name}.weight_packed"][0, 0]) & 0xFFFFFFFF == word
    assert stored[f"{name}.weight_shape"].tolist() == [32, 32]
    assert f"{name}.weight" not in stored
    assert "lm_head.weight" not in stored  # tied


def test_nvfp4_is_exact_in_the_file_and_rounded_by_transformers(wide_model: Path, tmp_path: Path) -> None:
    model, probe = written(wide_model, lambda _: NVFP4Grid(), tmp_path)
    answer = readback.by_transformers(tmp_path, probe.rollouts)
    assert 0 < readback.compare(probe.logits_NV, answer.logits_NV).token_kl_nats < 1e-3
    name = "model.layers.1.mlp.down_proj"
    stored = load_file(tmp_path / "model.safetensors")
    constraint = model.structure.constraints[f"{name}.weight"]
    assert torch.equal(stored[f"{name}.weight_scale"].float(), constraint.parameters["scale"])
    assert torch.equal(stored[f"{name}.weight_global_scale"][0], constraint.parameters["global"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_free_weights_keep_exact_scales(dtype: str, wide_model: Path, tmp_path: Path) -> None:
    model, probe = written(
        wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path, Export(to="compressed-tensors", dtype=dtype)
    )
    stored = load_file(tmp_path / "model.safetensors")
    assert str(stored["model.embed_tokens.weight"].dtype) == f"torch.{dtype}"
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored[f"{name}_scale"].float(), model.structure.constraints[name].parameters["scale"])
    difference = readback.compare(probe.logits_NV, readback.by_transformers(tmp_path, probe.rollouts).logits_NV)
    assert 0 < difference.token_kl_nats < 1e-3


def test_what_cannot_be_packed_is_refused(wide_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing to compress"):
        written(wide_model, lambda _: None, tmp_path)
    with pytest.raises(ExportError, match="use to: safetensors"):
        written(wide_model, lambda _: NF4Grid(32), tmp_path)
    grids = (IntegerGrid(4, 32, symmetric=False), FP8Grid())
    with pytest.raises(ExportError, match="only where every packed weight has the same format"):
        written(wide_model, lambda i: grids[i % 2], tmp_path)


def test_gpt2s_transposed_layers_are_refused(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "gpt2")
    with pytest.raises(ExportError, match="no linear layer lies on a quantization grid"):
        written(folder, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path)


def test_embeddings_on_a_grid_are_written_value_for_value(wide_model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from recoup.structure.spec import Constraint, Structure

    model = on_grids(wide_model, lambda _: IntegerGrid(4, 32, symmetric=True))
    weight = model.model.get_input_embeddings().weight
    constraint = Constraint(IntegerGrid(8, 32, symmetric=True)).fitted(weight)
    weight.data.copy_(constraint.project(weight))
    structure = Structure({**model.structure.constraints, "model.embed_tokens.weight": constraint})
    model = replace(model, structure=structure)
    probe = readback.probe(model)
    summary = write_compressed_tensors(model, CONFIG, tmp_path)
    assert torch.equal(readback.by_transformers(tmp_path, probe.rollouts).logits_NV, probe.logits_NV)
    assert any("model.embed_tokens.weight" in note for note in summary.notes)
    # 14 linear layers on the grid; the embeddings and 2 norms in each of 2 blocks and 1 after them are float32
    assert summary.tensor_types == {"float32": 6, "int4, groups of 32, symmetric": 14}


@pytest.mark.parametrize("name", [*EXACT, "nvfp4"])
def test_recoup_reads_it_back_with_the_same_structure(name: str, wide_model: Path, tmp_path: Path) -> None:
    """The reader of checkpoints made elsewhere finds the grid from the files alone."""
    model, _ = written(wide_model, lambda _: {**EXACT, "nvfp4": NVFP4Grid()}[name], tmp_path)
    again = load(str(tmp_path))
    trained = dict(model.model.named_parameters())
    assert all(torch.equal(parameter, trained[key]) for key, parameter in again.model.named_parameters())
    assert verify(again.model, again.structure).exact
    assert again.structure.constraints.keys() == model.structure.constraints.keys()
