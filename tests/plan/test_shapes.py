"""Counts on the meta device equal those of the real models, of what autograd keeps as well."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from recoup.config.degrade import AttentionHeads, Depth, FFNWidth
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.errors import SourceError
from recoup.plan.shapes import activations_of, damaged_config, meta_model, read_config, saved_bytes, shape_of
from tests.conftest import VOCAB, WIDTH, save_tiny

LAYOUTS = ["llama", "qwen2", "gemma3_text", "gpt2"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_equal_the_real_models(tiny_models: dict[str, Path], layout: str) -> None:
    real = AutoModelForCausalLM.from_pretrained(tiny_models[layout])
    shape = shape_of(meta_model(read_config(str(tiny_models[layout])), torch.float32))
    assert {w.name: w.size for w in shape.weights} == {n: p.numel() for n, p in real.named_parameters()}
    assert shape.num_parameters == sum(p.numel() for p in real.parameters())
    assert (shape.vocabulary, shape.width, shape.num_blocks) == (VOCAB, WIDTH, 2)


def test_llama_by_hand(tiny_model: Path) -> None:
    shape = shape_of(meta_model(read_config(str(tiny_model)), torch.float32))
    # 4 query heads and 2 groups of 8: q and o 32 × 32, k and v 16 × 32; gate, up, down 32 × 48; two norms of 32
    block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
    # the head is tied to the embeddings, so counted once; a norm at the end
    assert shape.num_parameters == 2 * block + VOCAB * 32 + 32
    assert shape.num_in_blocks == 2 * block
    assert sum(w.size for w in shape.weights if w.is_linear) == 2 * (block - 64)
    assert shape.kv_width == 2 * 2 * 8
    assert shape.attention_width == 32
    assert shape.largest == VOCAB * 32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_bytes_are_those_of_a_real_forward_pass(tiny_models: dict[str, Path], layout: str) -> None:
    config = read_config(str(tiny_models[layout]))
    real = AutoModelForCausalLM.from_pretrained(
        tiny_models[layout], dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    weights = {weight.untyped_storage().data_ptr() for weight in real.parameters()}
    held: dict[int, Tensor] = {}
    mask = torch.zeros(1, 1, 24, 24, dtype=torch.bfloat16)
    positions = torch.arange(24)[None]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: held.setdefault(tensor.untyped_storage().data_ptr(), tensor) if tensor.numel() else tensor,
        lambda tensor: tensor,
    ):
        real.base_model(positions, attention_mask=mask, position_ids=positions, use_cache=False)
    expected = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in weights)
    # rotary tables and buffers differ a little: on the meta device they are shared or not as storages happen to be
    assert saved_bytes(meta_model(config, torch.bfloat16), 24) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_are_a_line_and_a_square(tiny_models: dict[str, Path], layout: str) -> None:
    model = meta_model(read_config(str(tiny_models[layout])), torch.bfloat16)
    kept = activations_of(model, plain_attention=True)
    for length in (50, 100):
        # what does not grow with the length (a few scalars) is all that the two terms miss
        assert kept.per_token * length + kept.per_pair * length**2 == pytest.approx(
            saved_bytes(model, length), rel=0.01
        )
    assert kept.narrow_per_token == 2 * WIDTH * 2  # two blocks' inputs in bf16
    assert activations_of(model, plain_attention=False).per_pair == 0


INJURIES = [
    FFNWidth(fraction=0.1, calibration_tokens=64),
    Depth(num_blocks=1, calibration_tokens=64),
    AttentionHeads(fraction=0.5, unit="query", calibration_tokens=64),
    AttentionHeads(fraction=0.5, unit="group", calibration_tokens=64),
]


@pytest.mark.parametrize("injury", INJURIES, ids=lambda injury: f"{injury.type}-{getattr(injury, 'unit', '')}")
def test_a_shape_changing_injury_is_foreseen(tiny_model: Path, tmp_path: Path, injury) -> None:
    (tmp_path / "text.txt").write_text("some words to look at, over and over again\n" * 20)
    injury = injury.model_copy(update={"calibration": str(tmp_path / "text.txt")})
    made = degrade(injury, DegradeInputs(str(tiny_model), 0, None), tmp_path / "damaged")
    real = AutoModelForCausalLM.from_pretrained(made.checkpoint)
    shape = shape_of(meta_model(damaged_config(read_config(str(tiny_model)), [injury]), torch.float32))
    assert shape.num_parameters == sum(p.numel() for p in real.parameters())


def test_depth_keeps_the_kinds_of_the_blocks_that_stay(tiny_models: dict[str, Path]) -> None:
    config = damaged_config(read_config(str(tiny_models["gemma3_text"])), [Depth(num_blocks=1)])
    assert len(config.layer_types) == 1
    assert shape_of(meta_model(config, torch.float32)).num_blocks == 1


def test_an_adapter_is_read_as_its_base_and_a_compressed_model_as_it_trains(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    assert read_config(str(tmp_path / "adapter")) is read_config(str(tiny_model))
    folder = save_tiny("llama", tmp_path / "nf4")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    packed = shape_of(meta_model(read_config(str(folder)), torch.float32))
    assert packed.num_parameters == shape_of(meta_model(read_config(str(tiny_model)), torch.float32)).num_parameters


def test_no_weight_is_read(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    assert shape_of(meta_model(read_config(str(tmp_path)), torch.float32)).num_blocks == 2


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(SourceError, match="no such model folder"):
        read_config("./nowhere/at/all")
