"""Logits of completion tokens equal the model's own, and carry gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recoup.errors import SourceError
from recoup.models.load import LanguageModel, load
from recoup.models.logits import batches, completion_logits, completion_rows, completion_tokens, shared_vocabulary
from recoup.models.sample import Rollouts, pack
from tests.conftest import LAYOUTS, VOCAB, save_tiny

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
COMPLETIONS = [[20, 21, 22, 23], [24], [25, 26]]


def rollouts() -> Rollouts:
    return pack(PROMPTS, COMPLETIONS, pad=258)


def one_by_one(model: torch.nn.Module) -> torch.Tensor:
    """The model's logits for each sequence alone, at the positions before its completion tokens."""
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    return torch.cat(rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_the_models_own_unpadded(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout])).model
    torch.testing.assert_close(completion_logits(model, rollouts()), one_by_one(model), atol=1e-5, rtol=1e-5)


def test_a_soft_cap_is_kept(tmp_path: Path) -> None:
    model = load(str(save_tiny("gemma3_text", tmp_path, final_logit_softcapping=0.5))).model
    logits = completion_logits(model, rollouts())
    assert logits.abs().max() < 0.5
    torch.testing.assert_close(logits, one_by_one(model), atol=1e-5, rtol=1e-5)


def test_order_is_row_by_row() -> None:
    assert completion_tokens(rollouts()).tolist() == [20, 21, 22, 23, 24, 25, 26]
    assert completion_rows(rollouts()).tolist() == [0, 0, 0, 0, 1, 2, 2]


def test_gradients_equal_those_of_whole_logits(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model.requires_grad_(True)
    weights = dict(model.named_parameters())
    narrow = torch.autograd.grad(completion_logits(model, rollouts()).square().sum(), list(weights.values()))
    whole = torch.autograd.grad(one_by_one(model).square().sum(), list(weights.values()))
    for got, expected in zip(narrow, whole, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_the_hook_leaves_even_after_an_error(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    completion_logits(model, rollouts())
    with pytest.raises(IndexError):  # a token outside the vocabulary
        completion_logits(model, pack([[VOCAB + 1]], [[1]], pad=0))
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, VOCAB)


def test_batches_drop_columns_that_are_all_pads() -> None:
    parts = list(batches(rollouts(), 2))
    assert [tuple(part.tokens_BT.shape) for part in parts] == [(2, 9), (1, 3)]
    assert [ids for part in parts for ids in part.completions()] == COMPLETIONS
    assert parts[1].tokens_BT.tolist() == [[13, 25, 26]]


def test_heads_padded_to_different_sizes_share_the_smaller(tiny_model: Path, tmp_path: Path) -> None:
    small, large = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, vocab_size=VOCAB + 13)))
    assert shared_vocabulary(small, large) == shared_vocabulary(large, small) == VOCAB


def test_an_added_token_is_no_disagreement(tiny_model: Path) -> None:
    older, newer = load(str(tiny_model)), load(str(tiny_model))
    newer.tokenizer.add_tokens(["<|tool|>"])
    assert shared_vocabulary(older, newer) == shared_vocabulary(newer, older) == VOCAB


def test_other_tokenizer_is_one_line(tiny_model: Path) -> None:
    a, b = load(str(tiny_model)), load(str(tiny_model))
    a.tokenizer.add_tokens(["<|tool|>"])
    b.tokenizer.add_tokens(["<|other|>"])
    for first, second in ((a, b), (b, a)):
        with pytest.raises(SourceError, match="tokenizers disagree") as caught:
            shared_vocabulary(first, second)
        assert "\n" not in str(caught.value)


def test_a_model_without_a_head_is_one_line(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    headless: LanguageModel = replace(model, model=model.model.base_model)
    with pytest.raises(SourceError, match="no output head"):
        shared_vocabulary(model, headless)
