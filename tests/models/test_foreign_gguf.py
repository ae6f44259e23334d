"""GGUF files of mixed types: weights as transformers dequantizes them, and each matrix on the grid of its own type."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM

from recoup.errors import SourceError
from recoup.models import load as load_module
from recoup.models.foreign import convert
from recoup.models.foreign import gguf as gguf_reader
from recoup.models.load import load
from recoup.structure.grids.gguf_blocks import to_bytes
from recoup.structure.grids.k_quants import GGUF_GRIDS
from recoup.structure.verify import verify
from tests.conftest import CHAT_TEMPLATE, SPECIAL, save_tiny

WIDTH, FFN, HEADS, KV_HEADS, VOCAB = 64, 256, 4, 2, 260
KINDS = {
    "attn_q": Kind.Q4_0, "attn_k": Kind.Q8_0, "attn_v": Kind.Q5_1, "attn_output": Kind.Q5_0,
    "ffn_gate": Kind.Q4_1, "ffn_up": Kind.MXFP4, "ffn_down": Kind.Q4_K, "token_embd": Kind.Q8_0,
}  # fmt: skip
FORMATS = {
    "q_proj": "q4_0", "k_proj": "q8_0", "v_proj": "q5_1", "o_proj": "q5_0",
    "gate_proj": "q4_1", "up_proj": "mxfp4", "down_proj": "q4_k", "embed_tokens": "q8_0",
}  # fmt: skip


def stored_bytes(weight_OI: Tensor, kind: Kind) -> np.ndarray:
    """Blocks as gguf's own quantizer writes them; it has none for K-quants."""
    if kind.name.endswith("_K"):
        grid = GGUF_GRIDS[kind.name.lower()]()
        parameters = grid.fit(weight_OI)
        return to_bytes(grid, grid.project(weight_OI, parameters), parameters)
    return gguf.quants.quantize(weight_OI.numpy(), kind)


def rows_as_stored(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's converter lays the two halves of each head's rotary pairs side by side (`LlamaModel.permute`)."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def mixed_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Llama in which every kind of matrix has another type, and both blocks the same."""
    source = save_tiny(
        "llama", tmp_path_factory.mktemp("source"), hidden_size=WIDTH, intermediate_size=FFN, vocab_size=VOCAB
    )
    file = tmp_path_factory.mktemp("gguf") / "mixed.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", *SPECIAL])
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in load_file(source / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        kind = next((kind for part, kind in KINDS.items() if f"{part}." in stored), Kind.F32)
        if "attn_q" in stored or "attn_k" in stored:
            weight = rows_as_stored(weight, HEADS if "attn_q" in stored else KV_HEADS)
        data = weight.numpy() if kind is Kind.F32 else stored_bytes(weight, kind)
        writer.add_tensor(stored, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_each_matrix_on_the_grid_of_its_type(mixed_gguf: Path) -> None:
    student = load(str(mixed_gguf))
    constraints = student.structure.constraints
    assert len(constraints) == 2 * 7 + 1
    for name, constraint in constraints.items():
        assert constraint.grid is not None
        assert constraint.grid.format == FORMATS[name.split(".")[-2]]
        assert not constraint.refit
    assert verify(student.model, student.structure).exact
    assert student.structure_origin.startswith("read from GGUF: ")
    assert "MXFP4, groups of 32 (2 matrices)" in student.structure_origin
    assert "free" not in student.structure_origin


def test_weights_are_those_that_transformers_reads(mixed_gguf: Path) -> None:
    student = load(str(mixed_gguf))
    reference = AutoModelForCausalLM.from_pretrained(mixed_gguf.parent, gguf_file=mixed_gguf.name, dtype=torch.float32)
    for name, weight in reference.named_parameters():
        assert torch.equal(student.model.get_parameter(name), weight), name
    ids = torch.arange(10)[None]
    assert torch.equal(student.model(ids).logits, reference(ids).logits)
    assert student.tokenizer.chat_template == CHAT_TEMPLATE


def test_types_without_a_grid_stay_free_and_are_named(
    mixed_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECOUP_CACHE", str(tmp_path))
    monkeypatch.delitem(gguf_reader.BLOCK_GRIDS, "q4_1")
    student = load(str(mixed_gguf))
    assert len(student.structure.constraints) == 13
    assert "2 stay free: Q4_1 has no grid here" in student.structure_origin


def test_a_weight_off_its_grid_stays_free(mixed_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECOUP_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf_reader.BLOCK_GRIDS["q4_1"], "project", lambda self, weight_OI, parameters: weight_OI + 1)
    student = load(str(mixed_gguf))
    assert len(student.structure.constraints) == 13
    assert "2 stay free: projecting onto the grid does not give the weight back" in student.structure_origin


def test_the_embedded_name_plays_the_undamaged_model(mixed_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recoup.models.source._embedded_file", lambda: mixed_gguf)
    reference = load(load_module.EMBEDDED)
    assert not reference.structure.constraints
    assert reference.structure_origin == "none: `embedded` plays the undamaged model"
    assert torch.equal(
        reference.model.get_parameter("model.norm.weight"),
        load(str(mixed_gguf)).model.get_parameter("model.norm.weight"),
    )


def test_converted_once_for_each_version(mixed_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(str(mixed_gguf)).path
    assert first is not None
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert load(str(mixed_gguf)).path == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    monkeypatch.setattr(convert, "CONVERTER_VERSION", convert.CONVERTER_VERSION + 1)
    assert load(str(mixed_gguf)).path != first


@pytest.mark.parametrize("size", [100, 30_000])
def test_a_truncated_file_is_one_line(mixed_gguf: Path, tmp_path: Path, size: int) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(mixed_gguf.read_bytes()[:size])
    with pytest.raises(SourceError, match=r"cut\.gguf: cannot load this model") as caught:
        load(str(file))
    assert "\n" not in str(caught.value)
