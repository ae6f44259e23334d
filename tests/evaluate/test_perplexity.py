"""Perplexity: windows by hand, scores against a plain forward pass and lm-eval's rolling log-likelihood."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.config import Evaluate
from recoup.errors import DataError
from recoup.evaluate import likelihood_task, perplexity
from recoup.evaluate.log_likelihood import BatchedLM
from recoup.models.load import LanguageModel, load

TASK = perplexity.text_task("own_text", "text.txt", "a text of these tests")
CONTEXT = 512  # of the tiny models, which is the window where it is shorter than 2048
TEXT = "".join(f"Sentence {i} of this text. " for i in range(100))[: 4 * CONTEXT + 100]


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> LanguageModel:
    return load(str(tiny_models["llama"]))


def test_windows_by_hand() -> None:
    # seven tokens in windows of three: the token before each is its context, the seventh fills no window
    assert list(perplexity.windows([1, 2, 3, 4, 5, 6, 7], 3, 0)) == [([0], [1, 2, 3]), ([3], [4, 5, 6])]
    assert list(perplexity.windows([1, 2], 3, 0)) == [([0], [1, 2])]


@given(st.integers(1, 40), st.integers(1, 12))
def test_full_windows_equal_lm_evals(num_tokens: int, width: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    ids = list(range(1, num_tokens + 1))
    theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids, 0, width, context_len=1)]
    assert list(perplexity.windows(ids, width, 0)) == theirs[: max(1, num_tokens // width)]


def test_score_is_the_mean_of_a_plain_forward_pass(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    found = likelihood_task.score(model, TASK, Evaluate(data=str(tmp_path)))
    assert len(found.scores) == 4
    ids = model.tokenizer.encode(TEXT)
    second = torch.tensor([ids[CONTEXT - 1 : 2 * CONTEXT]])  # a token of context and the second window
    logp = model.model(second[:, :-1]).logits[0].log_softmax(-1)
    expected = logp.gather(1, second[0, 1:, None]).mean()
    assert found.scores[1] == pytest.approx(float(expected), abs=1e-5)


def test_equals_lm_evals_rolling_log_likelihood(model: LanguageModel, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance

    text = TEXT[: 3 * CONTEXT]  # nothing is left over
    (tmp_path / "text.txt").write_text(text)
    found = likelihood_task.score(model, TASK, Evaluate(data=str(tmp_path)))
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))
    [total] = BatchedLM(model, 10_000).loglikelihood_rolling([request])
    assert sum(found.scores) / 3 == pytest.approx(total / (3 * CONTEXT), abs=1e-6)


def test_documents_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two\n"}) + "\n")
    assert perplexity.read_text(file) == "one\n\ntwo\n"
    file.write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.raises(DataError, match="row 2: has no `text`"):
        perplexity.read_text(file)


@pytest.mark.parametrize(("content", "message"), [(b"", "holds no text"), (b"ab\xff", r"not UTF-8 text \(byte 2\)")])
def test_files_without_text_are_refused(model: LanguageModel, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        likelihood_task.score(model, TASK, Evaluate(data=str(tmp_path)))


@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with wikitext2/ and c4/")
@pytest.mark.parametrize("task", [perplexity.WIKITEXT2, perplexity.C4], ids=lambda task: task.name)
def test_real_texts_fill_windows(model: LanguageModel, task: likelihood_task.LikelihoodTask) -> None:
    path = Path(os.environ["RECOUP_DATA"]) / task.file
    num_bytes = len(perplexity.read_text(path).encode())  # one token per byte
    items = task.items(model, path)
    assert len(items) == num_bytes // CONTEXT
    assert {len(item.pairs[0][1]) for item in items} == {CONTEXT}
