"""Tiny random models of four architectures and a byte tokenizer: everything the default suite runs on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

settings.register_profile("any machine", deadline=None)  # seconds of a busy machine are no failure
settings.load_profile("any machine")
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)  # matrices this small lose more to the hand-over between threads than they gain

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCAB = 256 + len(SPECIAL)
WIDTH = 32

SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
LAYOUTS: dict[str, dict[str, object]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": False},
    "gemma3_text": {"num_key_value_heads": 1, "intermediate_size": 48, "head_dim": 8, "sliding_window": 64},
    "gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; nothing to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<|im_start|>",
        chat_template=CHAT_TEMPLATE, padding_side="left",
    )  # fmt: skip


def save_tiny(layout: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a two-block random model of `layout`, with tokenizer and chat template, to `folder`."""
    tokenizer = byte_tokenizer()
    settings: dict[str, object] = {
        "vocab_size": VOCAB,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **({} if layout == "gpt2" else SIZES),
        **LAYOUTS.get(layout, LAYOUTS["llama"]),
        **changes,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(layout, **settings))
    for parameter in model.parameters():  # larger than the default init, so that models disagree and damage shows
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per layout."""
    root = tmp_path_factory.mktemp("models")
    return {layout: save_tiny(layout, root / layout) for layout in LAYOUTS}


@pytest.fixture(scope="session")
def tiny_model(tiny_models: dict[str, Path]) -> Path:
    """The tiny Llama."""
    return tiny_models["llama"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never write to the user's cache, and never reach a hub."""
    monkeypatch.setenv("RECOUP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
