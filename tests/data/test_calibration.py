"""Calibration text: the number of tokens is met exactly, chunks are consecutive, bad files are refused."""

import json
from pathlib import Path

import pytest
import torch

from recoup.data import calibration
from recoup.data.calibration import CHUNK_TOKENS, calibration_rollouts
from recoup.data.chat import prompt_ids
from recoup.data.prompts import Prompt
from recoup.errors import DataError
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts


@pytest.fixture
def model(tiny_model: Path) -> LanguageModel:
    return load(str(tiny_model))


def sequences(batches: list[Rollouts]) -> list[list[int]]:
    return [row[mask].tolist() for b in batches for row, mask in zip(b.tokens_BT, b.attention_BT, strict=True)]


def test_text_is_cut_into_consecutive_chunks(model: LanguageModel, tmp_path: Path) -> None:
    text = "one byte is one token.\n" * 40
    (tmp_path / "text.txt").write_text(text)
    found = sequences(calibration_rollouts(str(tmp_path / "text.txt"), model, 600, seed=0))
    assert [len(ids) for ids in found] == [CHUNK_TOKENS, CHUNK_TOKENS, 600 - 2 * CHUNK_TOKENS]
    assert model.tokenizer.decode([id_ for ids in found for id_ in ids]) == text[:600]


def test_a_short_text_gives_what_it_holds(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ten bytes.")
    assert [len(ids) for ids in sequences(calibration_rollouts(str(tmp_path / "text.txt"), model, 600, 0))] == [10]


def test_rows_are_laid_out_by_their_field(model: LanguageModel, tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hi"}
    rows = [{"text": "as it is"}, {"prompt": "Hi"}, {"messages": [user, {"role": "assistant", "content": "Yo"}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = sequences(calibration_rollouts(str(tmp_path / "rows.jsonl"), model, 600, seed=0))
    expected = [
        model.tokenizer("as it is").input_ids,
        prompt_ids(model.tokenizer, [user]),
        prompt_ids(model.tokenizer, [user, {"role": "assistant", "content": "Yo"}]),
    ]
    assert sorted(first) == sorted(expected)
    others = [sequences(calibration_rollouts(str(tmp_path / "rows.jsonl"), model, 600, seed)) for seed in range(1, 6)]
    assert any(other != first for other in others)


def test_self_writes_prompts_and_answers(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt("Hi", tuple(prompt_ids(model.tokenizer, [{"role": "user", "content": "Hi"}])))] * 4
    monkeypatch.setattr(calibration, "load_prompts", lambda source, writer, count, seed: prompts[:count])
    first, second = (calibration_rollouts("self", model, 150, seed=3) for _ in range(2))
    assert sum(map(len, sequences(first))) == 150
    assert sequences(first)[0][: len(prompts[0].ids)] == list(prompts[0].ids)
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(first, second, strict=True))
    assert not any(batch.completion_BT.any() for batch in first)


def test_missing_and_empty_files_are_refused(model: LanguageModel, tmp_path: Path) -> None:
    for name in ("none.txt", "none.jsonl"):
        with pytest.raises(DataError, match="no such"):
            calibration_rollouts(str(tmp_path / name), model, 100, 0)
    for name in ("empty.txt", "empty.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(DataError, match="holds no calibration text"):
            calibration_rollouts(str(tmp_path / name), model, 100, 0)
    (tmp_path / "bad.jsonl").write_text('{"other": 1}')
    with pytest.raises(DataError, match="row 1: no text; expected one of the fields text, messages, prompt"):
        calibration_rollouts(str(tmp_path / "bad.jsonl"), model, 100, 0)
