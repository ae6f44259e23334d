"""Models are found, loaded, saved and taken apart by structure."""

from pathlib import Path

import pytest
import torch

from recoup.errors import SourceError
from recoup.models.layers import block_linears, blocks, feed_forwards, is_transposed, shape_OI
from recoup.models.load import load
from recoup.models.save import save
from recoup.models.source import resolve
from recoup.structure.spec import Structure
from tests.conftest import LAYOUTS, WIDTH

LINEARS_PER_BLOCK = {"llama": 7, "qwen2": 7, "gemma3_text": 7, "gpt2": 4}
FFN_WIDTH = {"llama": 48, "qwen2": 48, "gemma3_text": 48, "gpt2": 4 * WIDTH}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_are_found_by_structure(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout])).model
    assert len(blocks(model)) == 2
    assert len(block_linears(model)) == 2 * LINEARS_PER_BLOCK[layout]
    modules = dict(model.named_modules())
    for part in feed_forwards(model):
        assert shape_OI(modules[part.down]) == (WIDTH, FFN_WIDTH[layout])
        assert all(shape_OI(modules[name]) == (FFN_WIDTH[layout], WIDTH) for name in part.up)
        assert is_transposed(modules[part.down]) == (layout == "gpt2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_model_reloads_with_equal_logits(tiny_models: dict[str, Path], layout: str, tmp_path: Path) -> None:
    first = load(str(tiny_models[layout]))
    save(first, Structure(), tmp_path / "copy")
    second = load(str(tmp_path / "copy"))
    ids = torch.tensor([first.tokenizer("hello there").input_ids])
    assert torch.equal(first.model(ids).logits, second.model(ids).logits)
    assert second.tokenizer.chat_template == first.tokenizer.chat_template


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no such model folder"),
        ("/nowhere/model.gguf", "no such model folder"),
        ("a/b/c", "no such model folder"),
    ],
)
def test_missing_model_is_one_line(name: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_folder_without_weights_or_with_pickles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither config\.json nor adapter_config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(SourceError, match="does not load pickles"):
        resolve(str(tmp_path))


def test_hub_id_and_revision() -> None:
    source = resolve("Qwen/Qwen2.5-3B-Instruct@main")
    assert (source.kind, source.location, source.revision) == ("hub", "Qwen/Qwen2.5-3B-Instruct", "main")


def test_hub_id_without_a_hub_is_one_line() -> None:
    with pytest.raises(SourceError, match="cannot load this model") as caught:
        load("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)


def test_plain_chat_template(tiny_model: Path) -> None:
    tokenizer = load(str(tiny_model), chat_template="plain").tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"


def test_adapter_is_merged_into_its_base(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = load(str(tiny_model)).model
    before = base.get_submodule("model.layers.0.self_attn.q_proj").weight.clone()
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        (tmp_path / "adapter" / "adapter_config.json").read_text().replace("null", "null")
    )
    load_from = load(str(tiny_model))
    load_from.tokenizer.save_pretrained(tmp_path / "adapter")
    merged = load(str(tmp_path / "adapter")).model
    torch.testing.assert_close(merged.get_submodule("model.layers.0.self_attn.q_proj").weight, before + product)
