"""GGUF files, read back by the gguf library and by transformers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import LlamaConfig

from recoup.errors import ExportError, StructureError
from recoup.export.gguf import write_gguf
from recoup.export.gguf_metadata import rotary_factors, rotary_rows
from recoup.models.load import LanguageModel, load
from recoup.models.messages import quiet
from recoup.structure.grids import IntegerGrid
from recoup.structure.grids.base import Grid
from recoup.structure.grids.k_quants import GGUF_GRIDS
from recoup.structure.spec import Constraint, Structure
from tests.conftest import LAYOUTS, save_tiny

GGUF_GEMMA3 = {"query_pre_attn_scalar": 8, "num_hidden_layers": 6}  # what llama.cpp computes; its sixth layer is global


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in GGUFReader(file).tensors}


def metadata(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(file).fields.items()}


def quantized(folder: Path, grid_for: Callable[[str], Grid | None]) -> LanguageModel:
    """A tiny Llama whose projections lie on the grids that `grid_for` gives their names."""
    model = load(str(save_tiny("llama", folder, intermediate_size=64)))
    constraints = {}
    for name, parameter in model.model.named_parameters():
        grid = grid_for(name) if "_proj" in name else None
        if grid is not None:
            constraints[name] = Constraint(grid).fitted(parameter.data)
            parameter.data.copy_(constraints[name].project(parameter.data))
    return replace(model, structure=Structure(constraints))


@pytest.mark.parametrize("layout", ["llama", "qwen2"])
def test_transformers_answers_alike_from_the_file(tiny_models: dict[str, Path], layout: str, tmp_path: Path) -> None:
    model = load(str(tiny_models[layout]))
    file = tmp_path / "model.gguf"
    summary = write_gguf(model, file, "f32")
    assert summary.num_bytes == file.stat().st_size
    assert summary.types == {"F32": sum(1 for _ in model.model.parameters())}
    with quiet():
        again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    ids = torch.arange(40).view(2, 20) * 6
    assert torch.equal(again(ids).logits, model.model(ids).logits)


def test_the_file_says_what_llama_cpp_needs(tiny_model: Path, tmp_path: Path) -> None:
    model = load(str(tiny_model))
    file = tmp_path / "model.gguf"
    write_gguf(model, file)
    said = metadata(file)
    expected = {
        "general.architecture": "llama",
        "general.name": tiny_model.name,
        "general.file_type": 1,  # mostly float16
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,  # 32 / 4
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 259,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.bos_token_id": model.tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": model.tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": model.tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": model.tokenizer.chat_template,
    }
    assert {key: said[key] for key in expected} == expected
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert len(said["tokenizer.ggml.tokens"]) == 259
    written = {t.name: t.tensor_type.name for t in GGUFReader(file).tensors}
    assert "output.weight" not in written  # tied
    assert written["token_embd.weight"] == "F16"
    assert written["blk.0.attn_norm.weight"] == "F32"


def test_every_grid_comes_back_bit_for_bit(tmp_path: Path) -> None:
    grids: dict[str, Grid] = {
        "q_proj": IntegerGrid(4, 32, symmetric=True),
        "k_proj": GGUF_GRIDS["q4_1"](),
        "v_proj": GGUF_GRIDS["q5_1"](),
        "o_proj": IntegerGrid(3, None, symmetric=True),
        "gate_proj": GGUF_GRIDS["q8_0"](),
        "up_proj": GGUF_GRIDS["q4_0"](),
        "down_proj": IntegerGrid(5, 64, symmetric=True),
    }
    model = quantized(tmp_path / "tiny", lambda name: grids[name.split(".")[-2]])
    file = tmp_path / "model.gguf"
    summary = write_gguf(model, file)
    assert summary.inexact == ()
    # of each projection two layers: q, o and up are Q4_0; free is the embedding; 2 · 2 + 1 norms
    assert summary.types == {"Q4_0": 6, "Q4_1": 2, "Q5_1": 2, "Q8_0": 2, "Q5_0": 2, "F16": 1, "F32": 5}
    back = tensors(file)
    weights = dict(model.model.named_parameters())
    names = {
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    for name, parameter in weights.items():
        short = name.split(".")[-2]
        if short in names:
            assert torch.equal(back[f"blk.{name.split('.')[2]}.{names[short]}.weight"], parameter.data)
    for name, short, num_heads in [("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)]:
        rows = rotary_rows(model.model.config, num_heads)
        expected = weights[f"model.layers.1.self_attn.{name}.weight"].data[rows]
        assert torch.equal(back[f"blk.1.{short}.weight"], expected)


def test_weights_that_no_type_holds_are_named(tmp_path: Path) -> None:
    grid = IntegerGrid(4, 32, symmetric=False)
    model = quantized(tmp_path / "tiny", lambda name: grid if "layers.0.mlp.up_proj" in name else None)
    assert write_gguf(model, tmp_path / "half.gguf", "f16").inexact == ("model.layers.0.mlp.up_proj.weight",)
    assert write_gguf(model, tmp_path / "full.gguf", "f32").inexact == ()


def test_weights_kept_in_bfloat16_are_written_as_the_grid_has_them(tmp_path: Path) -> None:
    model = quantized(tmp_path / "tiny", lambda _: GGUF_GRIDS["q4_1"]())
    name = "model.layers.0.mlp.up_proj.weight"
    exact = dict(model.model.named_parameters())[name].data.clone()
    model.model.to(torch.bfloat16)
    assert not torch.equal(dict(model.model.named_parameters())[name].data.float(), exact)
    write_gguf(model, tmp_path / "model.gguf")
    assert torch.equal(tensors(tmp_path / "model.gguf")["blk.0.ffn_up.weight"], exact)


def test_a_weight_off_its_grid_leaves_the_old_file(tmp_path: Path) -> None:
    model = quantized(tmp_path / "tiny", lambda _: GGUF_GRIDS["q8_0"]())
    file = tmp_path / "out" / "model.gguf"
    write_gguf(model, file)
    before = file.read_bytes()
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(StructureError, match=r"model.layers.1.mlp.up_proj.weight: off its grid"):
        write_gguf(model, file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == before


def test_rows_of_two_halves_become_pairs() -> None:
    config = LlamaConfig(hidden_size=8, num_attention_heads=2)
    # a head of 4 rows: 0 turns with 2, 1 with 3; llama.cpp turns neighbours
    assert rotary_rows(config, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rotary_factors_are_llama_3s() -> None:
    rotary = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=rotary)
    factors = rotary_factors(config)
    assert factors is not None
    # wavelengths below 8192/4 tokens stay, above 8192/1 are stretched 8 times: the first is 2π, the last 2π·500000^(62/64)
    assert (float(factors[0]), float(factors[-1])) == (1, 8)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / factors, scaled)
    assert rotary_factors(LlamaConfig()) is None


def test_llama_3s_factors_are_a_tensor_of_the_file(tmp_path: Path) -> None:
    rotary = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    model = load(str(save_tiny("llama", tmp_path / "tiny", rope_parameters=rotary)))
    write_gguf(model, tmp_path / "model.gguf")
    assert tensors(tmp_path / "model.gguf")["rope_freqs.weight"].shape == (4,)


def test_the_context_ends_where_a_window_that_llama_cpp_does_not_know_begins(tmp_path: Path) -> None:
    model = load(str(save_tiny("qwen2", tmp_path / "tiny", use_sliding_window=True, sliding_window=64)))
    write_gguf(model, tmp_path / "model.gguf")
    assert metadata(tmp_path / "model.gguf")["qwen2.context_length"] == 64  # of 512 positions


def test_special_tokens_that_only_the_config_names_are_written(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = load(str(tiny_models["qwen2"]))
    model.tokenizer.bos_token = None
    write_gguf(model, tmp_path / "model.gguf")
    assert metadata(tmp_path / "model.gguf")["tokenizer.ggml.bos_token_id"] == model.model.config.bos_token_id


def test_norms_of_gemma_hold_what_is_added_to_them(tmp_path: Path) -> None:
    model = load(str(save_tiny("gemma3_text", tmp_path / "tiny", **GGUF_GEMMA3)))
    write_gguf(model, tmp_path / "model.gguf")
    expected = model.model.model.norm.weight.data + 1
    assert torch.equal(tensors(tmp_path / "model.gguf")["output_norm.weight"], expected)


def test_transposed_weights_are_turned(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = load(str(tiny_models["gpt2"]))
    write_gguf(model, tmp_path / "model.gguf", "f32")
    expected = model.model.transformer.h[0].mlp.c_fc.weight.data.T
    assert torch.equal(tensors(tmp_path / "model.gguf")["blk.0.ffn_up.weight"], expected)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("gpt_neox", {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}, "unknown model type"),
        ("llama", {"hidden_act": "gelu"}, "runs llama with silu, not gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("gemma3_text", {}, "scales this model's attention by 8, not 256"),
        ("gemma3_text", {"query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 2}, "another order"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    layout: str, changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAYOUTS, "gpt_neox", {"intermediate_size": 48})
    model = load(str(save_tiny(layout, tmp_path / "tiny", **changes)))
    with pytest.raises(ExportError, match=message):
        write_gguf(model, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
