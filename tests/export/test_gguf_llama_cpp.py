"""GGUF files, answered from by llama.cpp itself (llama-cpp-python, not among the dependencies).

llama.cpp keeps keys and values in float16 and multiplies blocks with 8-bit activations, so answers agree closely, not bit for
bit; measured differences of logits are under 0.005 here, where another row order or another scale gives whole units.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.export.gguf import write_gguf
from recoup.models.load import LanguageModel, load
from tests.conftest import LAYOUTS, SIZES, save_tiny

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

LOGIT_TOLERANCE = 0.02
TEXTS = (
    "Hello, world!",
    "",
    "3 33 333 3333 33333 3.3 3..3 1,234,567",
    "  leading\n\n\ttabs   and  runs    of spaces \n \n\n",
    "def f(x):\n    return x**2 + 1  # comment\n",
    "Zażółć gęślą jaźń — Привет мир 你好世界 🦙🚀 😶‍🌫️",
    "I'm you'RE we'Ve they'll don't 'tis",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b",
    "https://example.com/?q=1&b=%20",
    "½ ² Ⅷ \u00a0nbsp\u200bzero\r\nwindows",
    "------======= ''''''```````\"\"\"\"......!!!!!!??????",
)
LAYOUT_CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3 rotary": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
    "yarn rotary": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
        },
    },
    "linear rotary": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "num_hidden_layers": 7, "sliding_window": 16},
    "gpt2": {},
}  # fmt: skip


def answering(file: Path) -> Any:
    return closing(llama_cpp.Llama(str(file), n_ctx=512, logits_all=True, verbose=False, n_threads=1))


def logits(llama: Any, ids: list[int]) -> torch.Tensor:
    llama.reset()
    llama.eval(ids)
    return torch.tensor(llama.scores[: len(ids)])


@pytest.mark.parametrize("what", LAYOUT_CHANGES)
@pytest.mark.filterwarnings("ignore:.*llama_cpp.*")
def test_every_architecture_answers_as_in_transformers(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mistral", "qwen3"):
        monkeypatch.setitem(LAYOUTS, name, {"num_key_value_heads": 2, "intermediate_size": 48, **SIZES})
    layout = what if what in LAYOUTS else "llama"
    model = load(str(save_tiny(layout, tmp_path / "tiny", **LAYOUT_CHANGES[what])))
    with torch.no_grad():
        for parameter in model.model.parameters():  # norms and biases, too, must be in their places
            if parameter.ndim == 1:
                parameter.add_(torch.linspace(-0.2, 0.3, len(parameter)))
    write_gguf(model, tmp_path / "model.gguf", "f32")
    ids = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    with answering(tmp_path / "model.gguf") as llama:
        difference = logits(llama, ids) - model.model(torch.tensor([ids])).logits[0]
        assert llama.tokenize(b"Hi <|im_start|> 12", special=True) == model.tokenizer.encode("Hi <|im_start|> 12")
    assert difference.abs().max() < LOGIT_TOLERANCE


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LanguageModel, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECOUP_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = load("embedded")
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(model, file, "f32")
    with answering(file) as llama:
        yield model, llama


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_reads_the_same_tokens(embedded: tuple[LanguageModel, Any], text: str) -> None:
    model, llama = embedded
    assert llama.tokenize(text.encode(), special=True) == model.tokenizer.encode(text)


def test_llama_cpp_gives_the_same_answers(embedded: tuple[LanguageModel, Any]) -> None:
    model, llama = embedded
    ids = model.tokenizer.encode("The capital of France is Paris, and water boils at 100 degrees.")
    expected_TV = model.model(torch.tensor([ids])).logits[0]
    found_TV = logits(llama, ids)
    assert (found_TV.argmax(-1) == expected_TV.argmax(-1)).float().mean() > 0.9
    # measured 1e-6 nats; another tokenizer, row order or norm gives whole nats
    kl = (expected_TV.softmax(-1) * (expected_TV.log_softmax(-1) - found_TV.log_softmax(-1))).sum(-1).mean()
    assert kl < 1e-4
    message = [{"role": "user", "content": "What is the capital of France?"}]
    assert (
        "Paris"
        in llama.create_chat_completion(message, max_tokens=16, temperature=0)["choices"][0]["message"]["content"]
    )
