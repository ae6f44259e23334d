"""Tasks that score given continuations: token ids as lm-eval's, items, samples, errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.config import Evaluate
from recoup.errors import DataError
from recoup.evaluate import lambada, likelihood_task
from recoup.evaluate.likelihood_task import text_pair
from recoup.evaluate.log_likelihood import BatchedLM
from recoup.models.load import LanguageModel, load


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> LanguageModel:
    return load(str(tiny_models["llama"]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five LAMBADA rows."""
    file = tmp_path / lambada.TASK.file
    file.parent.mkdir()
    rows = [{"context": f"Row {i} ends with the", "continuation": f"word{i}"} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_spaces_before_the_continuation_are_scored(model: LanguageModel) -> None:
    # the byte tokenizer has one token per byte: "ab" stays in the context, "  " goes with " c"
    encode = model.tokenizer.encode
    assert text_pair(model.tokenizer, "ab  ", " c") == (encode("ab"), encode("   c"))


texts = st.text("ab \n<|im_start|>é", min_size=1, max_size=12).filter(str.strip)


@given(texts, texts)
def test_token_ids_equal_lm_evals(model: LanguageModel, context: str, continuation: str) -> None:
    expected = BatchedLM(model, 100)._encode_pair(context, continuation)
    assert text_pair(model.tokenizer, context, continuation) == tuple(expected)


def test_items_are_drawn_by_the_seed(model: LanguageModel, data: Path) -> None:
    whole = likelihood_task.score(model, lambada.TASK, Evaluate(data=str(data)))
    assert whole.item_ids == tuple(f"lambada_openai/{i}" for i in range(5))
    some = likelihood_task.score(model, lambada.TASK, Evaluate(data=str(data), limit=3, seed=1))
    by_id = dict(zip(whole.item_ids, whole.samples, strict=True))
    assert len(some.item_ids) == 3
    for item, sample in zip(some.item_ids, some.samples, strict=True):
        number = item.removeprefix("lambada_openai/")
        assert sample["prompt"] == f"Row {number} ends with the"
        assert sample["answers"][0][0] == f" word{number}"
        assert sample["gold"] == f"word{number}"
        assert sample["logp"] == pytest.approx(by_id[item]["logp"], abs=1e-4)


def test_progress_counts_continuations(model: LanguageModel, data: Path) -> None:
    told: list[tuple[int, int]] = []
    config = Evaluate(data=str(data), limit=4)
    likelihood_task.score(model, lambada.TASK, config, lambda done, total: told.append((done, total)))
    assert told[-1] == (4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ('{"context": "a", "continuation": "b"}\n{"context": "a"}\n', r"row 2: not a row of this task \(KeyError"),
        ('{"context": null, "continuation": "b"}\n', "row 1: not a row"),
    ],
)
def test_malformed_files_are_refused(model: LanguageModel, data: Path, content: str, message: str) -> None:
    (data / lambada.TASK.file).write_text(content)
    with pytest.raises(DataError, match=message):
        likelihood_task.score(model, lambada.TASK, Evaluate(data=str(data)))


def test_the_data_folder_is_needed(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'lambada_openai' needs `evaluate\.data`: the folder that holds lambada/"):
        likelihood_task.score(model, lambada.TASK, Evaluate())
    with pytest.raises(DataError, match="no such file"):
        likelihood_task.score(model, lambada.TASK, Evaluate(data=str(tmp_path)))
