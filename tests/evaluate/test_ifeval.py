"""IFEval: rows, what is left out, and scores equal to lm-eval's; its checkers where their packages are installed."""

import json
import logging
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recoup.errors import ConfigError, DataError
from recoup.evaluate import chat_task, ifeval

ROW = {
    "key": 1,
    "prompt": "Write about rain, in two sentences, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences", "keywords:existence"],
    "kwargs": [{}, {"relation": "less than", "num_sentences": 3}, {"keywords": ["rain"]}],
}
SENTENCES_ONLY = {**ROW, "instruction_id_list": ROW["instruction_id_list"][1:2], "kwargs": ROW["kwargs"][1:2]}  # type: ignore[index]


@dataclass
class Item:
    """The fields of lm-eval's `InputExample`."""

    key: int
    instruction_id_list: list[str]
    prompt: str
    kwargs: list[dict[str, Any]]


def stand_in() -> SimpleNamespace:
    """Checkers that hold an instruction followed when the text names its kind (loose: in any case)."""

    def strict(item: Item, text: str) -> SimpleNamespace:
        assert len(item.kwargs) == len(item.instruction_id_list)
        return SimpleNamespace(
            follow_instruction_list=[name.partition(":")[0] in text for name in item.instruction_id_list]
        )

    return SimpleNamespace(
        InputExample=Item,
        test_instruction_following_strict=strict,
        test_instruction_following_loose=lambda item, text: strict(item, text.lower()),
    )


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the checkers, and no data of NLTK."""
    monkeypatch.setattr(ifeval, "load_checkers", stand_in)
    monkeypatch.setattr(ifeval, "has_punkt", lambda: False)


@pytest.fixture
def real() -> Iterator[Any]:
    """lm-eval's checkers."""
    pytest.importorskip("langdetect")
    pytest.importorskip("immutabledict")
    return ifeval.load_checkers()


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / ifeval.TASK.file
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_shares_of_instructions(no_packages: None) -> None:
    # sentences cannot be counted, which leaves two instructions: one of them is followed, loosely both
    assert ifeval.grade(ROW, "Keywords punctuation") == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.5,
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }
    assert ifeval.gold(ROW) == "punctuation:no_comma\nkeywords:existence"


def test_what_cannot_be_checked_is_left_out_and_said_once(
    no_packages: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, ROW, SENTENCES_ONLY, ROW)
    with caplog.at_level(logging.WARNING, logger=ifeval.logger.name):
        assert chat_task.read_rows(ifeval.TASK, str(tmp_path)) == [ROW, ROW]
        ifeval.read(file)
    [said] = caplog.messages
    assert "left out 3 x length_constraints:number_sentences, and so 1 of 3 prompts" in said
    assert "python -m nltk.downloader punkt_tab" in said


def test_nothing_is_left_out_where_the_data_is(
    no_packages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ifeval, "has_punkt", lambda: True)
    file = write(tmp_path, ROW, SENTENCES_ONLY)
    assert ifeval.read(file) == [ROW, SENTENCES_ONLY]
    assert ifeval.grade(ROW, "keywords punctuation")["instruction_strict"] == pytest.approx(2 / 3)
    assert not caplog.messages


@pytest.mark.parametrize(
    "change", [{"kwargs": [{}]}, {"kwargs": None}, {"instruction_id_list": 3}, {"instruction_id_list": []}]
)
def test_malformed_rows_are_refused(no_packages: None, tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, ROW, {**ROW, **change})
    with pytest.raises(DataError, match="row 2: not a row"):
        chat_task.read_rows(ifeval.TASK, str(tmp_path))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)  # as if it were not installed
    ifeval.load_checkers.cache_clear()
    with pytest.raises(ConfigError, match=r"needs the package 'langdetect'; run: pip install 'lm-eval\[ifeval\]'"):
        ifeval.read(write(tmp_path, ROW))


def test_nothing_is_downloaded(real: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nltk = pytest.importorskip("nltk")

    def absent(*_: object) -> None:
        raise LookupError

    def download(*_: object) -> None:
        raise AssertionError("downloads")

    monkeypatch.setattr(nltk.data, "find", absent)
    monkeypatch.setattr(nltk, "download", download)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)  # they would download while they are imported
    ifeval.load_checkers.cache_clear()
    assert ifeval.load_checkers() is not real
    assert not ifeval.has_punkt()
    assert capsys.readouterr().out == ""
    ifeval.load_checkers.cache_clear()


def test_real_checkers_on_hand_written_answers(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ifeval, "has_punkt", lambda: False)
    assert ifeval.grade(ROW, "The rain falls.")["prompt_strict"] == 1.0
    assert ifeval.grade(ROW, "The rain falls, again.")["instruction_strict"] == 0.5
    assert ifeval.grade(ROW, "Well, yes.\nThe rain falls.") == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.5,
        "prompt_loose": 1.0,  # without its first line the text has no comma
        "instruction_loose": 1.0,
    }
    assert set(ifeval.grade(ROW, "").values()) == {0.0}


def test_sentences_are_counted_where_the_data_is(real: Any) -> None:
    if not ifeval.has_punkt():
        pytest.skip("NLTK finds no punkt_tab")
    assert ifeval.grade(ROW, "The rain falls. It is wet.")["prompt_strict"] == 1.0
    assert ifeval.grade(ROW, "The rain falls. It is wet. It stops.")["instruction_strict"] == pytest.approx(2 / 3)


def test_random_checks_give_equal_texts_equal_scores(real: Any) -> None:
    """lm-eval replaces a "letter" that is none by a random one."""
    row = {**ROW, "instruction_id_list": ["keywords:letter_frequency"], "kwargs": [{"letter": "!", "let_frequency": 1, "let_relation": "at least"}]}  # fmt: skip
    text = "a b c d e f g h i j k l m"  # half of the alphabet: unseeded, some letters are in it and some not
    scores = set()
    for seed in range(20):
        random.seed(seed)
        scores.add(ifeval.grade(row, text)["prompt_strict"])
    assert len(scores) == 1


def test_the_random_state_of_the_caller_is_left_as_it_was() -> None:
    before = random.getstate()
    with ifeval._seeded():
        random.random()
    assert random.getstate() == before


@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with ifeval/")
def test_real_rows_are_graded_as_lm_eval_does(real: Any) -> None:
    rows = chat_task.read_rows(ifeval.TASK, "$RECOUP_DATA")
    texts = ["", "*x* <<T>> P.S. [a]\n\n***\n\nall lower case words.", "One, two. Any other questions?"]
    compared = 0
    for row in rows:
        drawn = any(kwargs.get("letter") == "!" for kwargs in row["kwargs"])
        if drawn or len(ifeval.checkable(row)) < len(row["instruction_id_list"]):
            continue
        for text in texts:
            theirs, ours = real.process_results(row, [text]), ifeval.grade(row, text)
            assert ours["prompt_strict"] == theirs["prompt_level_strict_acc"]
            assert ours["prompt_loose"] == theirs["prompt_level_loose_acc"]
            followed = theirs["inst_level_strict_acc"]
            assert ours["instruction_strict"] == sum(followed) / len(followed)
            compared += 1
    assert compared > 600
