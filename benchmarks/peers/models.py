"""The models and prompts that contenders share: an ordinary teacher folder, a student with noise in it, and a prompt file."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from recoup.data.prompts import Prompt, Split, load_prompts
from recoup.models.load import LanguageModel, load

NOISE = 0.1  # of each matrix's standard deviation
SHAPES = {
    # Qwen2.5-3B-Instruct's config.json
    "qwen2.5-3b": {
        "model_type": "qwen2", "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    },
    # SmolLM2-135M's size in two other layouts
    "qwen2-135m": {
        "model_type": "qwen2", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "gemma3-135m": {
        "model_type": "gemma3_text", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "intermediate_size": 1536, "vocab_size": 49152,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip


def make_models(folder: Path, name: str, shape: str | None = None) -> tuple[LanguageModel, Path, Path]:
    """Save a teacher and a noisy student as ordinary checkpoints.

    Args:
        folder: where to.
        name: the model to save, or the one whose tokenizer goes with random weights of `shape`.
        shape: a name in `SHAPES`, in bf16.

    Returns:
        The model called `name`, the teacher's folder, the student's folder.
    """
    logging.disable_progress_bar()
    loaded = load(name)
    model = loaded.model if shape is None else _random(SHAPES[shape], loaded.tokenizer)
    for state in ("teacher", "student"):
        if state == "student":
            _add_noise(model)
        model.save_pretrained(folder / state)
        loaded.tokenizer.save_pretrained(folder / state)
    return loaded, folder / "teacher", folder / "student"


def make_prompts(path: Path, model: LanguageModel, count: int, split: Split = "train") -> list[Prompt]:
    """Write `count` prompts with answers, all of one of recoup's splits, so that every contender uses all of a file."""
    topics = ["the number {}", "the year {}", "a street with {} houses", "a ship with {} sailors"]
    # one prompt in five is held out
    names = [topics[i % 4].format(i + 3) for i in range(count * (2 if split == "train" else 10))]
    answers = {
        f"Tell me what is worth knowing about {name}.": f"Three things about {name}, in order." for name in names
    }
    write_rows(path, [{"prompt": text} for text in answers])
    prompts = load_prompts(str(path), model, count, 0, split)
    assert len(prompts) == count
    write_rows(path, [{"prompt": prompt.text, "answer": answers[prompt.text]} for prompt in prompts])
    return prompts


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _random(shape: dict[str, object], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**shape, **ids)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


@torch.no_grad()
def _add_noise(model: PreTrainedModel) -> None:
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.add_(torch.randn_like(weight) * weight.std() * NOISE)
