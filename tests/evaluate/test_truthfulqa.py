"""TruthfulQA: the lists made of the columns, both scores by hand and against lm-eval's own tasks."""

import json
import math
import os
from pathlib import Path

import pytest

from recoup.config import Evaluate
from recoup.errors import DataError
from recoup.evaluate import likelihood_task, truthfulqa
from recoup.evaluate.likelihood_task import LikelihoodTask
from recoup.models.load import load
from recoup.run_folder import read_jsonl
from tests.evaluate.lm_eval_tasks import evaluated

ROWS = [
    {
        "question": f"Is {i} a {thing}?",
        "best_answer": "No, it is a number",
        "correct_answers": ["No", "No, it is a number", "It is a number"][: 2 + i % 2],
        "incorrect_answers": ["Yes", f"Only if the {thing} is green", "I do not know"][: 1 + i % 3],
    }
    for i, thing in enumerate(["fish", "tree", "stone", "cloud", "song"])
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / truthfulqa.FILE
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_lists() -> None:
    assert truthfulqa.mc1_choices(ROWS[1]) == (["No, it is a number"], ["Yes", "Only if the tree is green"])
    assert truthfulqa.mc2_choices(ROWS[0]) == (["No", "No, it is a number"], ["Yes"])


def test_an_answer_counts_once_and_rather_as_true() -> None:
    row = {
        "best_answer": "No",
        "correct_answers": ["No", "Unknown", "No"],
        "incorrect_answers": ["Yes", "Unknown", "Yes"],
    }
    assert truthfulqa.mc2_choices(row) == (["No", "Unknown"], ["Yes"])
    assert truthfulqa.mc1_choices(row) == (["No"], ["Yes", "Unknown"])


def test_mc1_is_the_first_answer_being_likeliest() -> None:
    assert truthfulqa.mc1([(-2.0, False), (-3.0, False)]) == {"acc": 1.0}
    assert truthfulqa.mc1([(-2.0, False), (-1.0, True), (-4.0, False)]) == {"acc": 0.0}
    assert truthfulqa.mc1([(-2.0, False), (-2.0, False)]) == {"acc": 1.0}  # the first of equals, as argmax takes it


def test_mc2_is_the_share_of_the_true() -> None:
    # probabilities 0.2, 0.1 true and 0.3 false: (0.2 + 0.1) / 0.6 = 0.5
    answers = [(math.log(p), False) for p in (0.2, 0.1, 0.3)]
    assert truthfulqa.mc2(2, answers)["acc"] == pytest.approx(0.5)
    # the same times exp(-2000), where probabilities underflow
    assert truthfulqa.mc2(2, [(logp - 2000, False) for logp, _ in answers])["acc"] == pytest.approx(0.5)


@pytest.mark.parametrize("task", [truthfulqa.MC1, truthfulqa.MC2], ids=lambda task: task.name)
def test_equals_lm_eval(tiny_model: Path, data: Path, task: LikelihoodTask) -> None:
    model = load(str(tiny_model))
    model.model.config.max_position_embeddings = 2048  # the prompt is 800 bytes; rotary positions go on
    ours = likelihood_task.score(model, task, Evaluate(data=str(data)))
    rows = []
    for row in ROWS:
        lists = {"mc1_targets": truthfulqa.mc1_choices(row), "mc2_targets": truthfulqa.mc2_choices(row)}
        targets = {k: {"choices": [*t, *f], "labels": [1] * len(t) + [0] * len(f)} for k, (t, f) in lists.items()}
        rows.append({"question": row["question"], **targets})
    theirs = evaluated(model, "truthfulqa", task.name, rows)
    assert list(ours.scores) == pytest.approx([sample["acc"] for sample in theirs["samples"]], abs=1e-5)
    assert ours.samples[0]["prompt"] == theirs["samples"][0]["arguments"][0][0]
    assert ours.samples[1]["answers"][0][0] == theirs["samples"][1]["arguments"][0][1]


def test_a_question_without_falsehoods_is_refused(tiny_model: Path, data: Path) -> None:
    (data / truthfulqa.FILE).write_text(json.dumps({**ROWS[0], "incorrect_answers": []}))
    with pytest.raises(DataError, match=r"row 1: .*needs a true and a false answer"):
        likelihood_task.score(load(str(tiny_model)), truthfulqa.MC1, Evaluate(data=str(data)))


@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with truthfulqa/")
def test_real_rows_give_items(tiny_model: Path) -> None:
    path = Path(os.environ["RECOUP_DATA"]) / truthfulqa.FILE
    for choices in (truthfulqa.mc1_choices, truthfulqa.mc2_choices):
        items = truthfulqa.items(choices, load(str(tiny_model)), path)
        assert min(len(item.pairs) for item in items) >= 2
        assert all(len(set(map(str, item.pairs))) == len(item.pairs) for item in items)
    assert all(row["best_answer"] in row["correct_answers"] for row in read_jsonl(path))
