"""GSM8K: which number is read, by hand and against lm-eval's own filters and metric."""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from recoup.config import Evaluate
from recoup.evaluate import chat_task, gsm8k
from recoup.models.load import load

ROW = {"question": "How many?", "answer": "6 * 7 = <<6*7=42>>42 eggs, at $30 each.\n#### 1,260"}


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        (ROW["answer"], 1, 1),  # the gold solution
        ("#### 1260", 1, 1),  # commas do not count
        ("It is $1,260.", 1, 0),  # "$1,260." is one number; dollar sign and full stop fall away
        ("#### 1260\nThat is 42 * 30.", 0, 1),  # the last number is 30, the marked one is right
        ("#### 7\n#### 1260", 1, 0),  # strict takes the first
        ("1260.00", 0, 0),  # compared as text
        ("-1260", 0, 0),
        ("####1260", 1, 0),  # the mark has a space after it
        ("no number", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_number_that_is_read(text: str, flexible: float, strict: float) -> None:
    assert gsm8k.grade(ROW, text) == {"flexible": flexible, "strict": strict}


def lm_evals_scores(row: dict[str, str], text: str) -> dict[str, float]:
    """The text through the filters and the metric that lm-eval's YAML names."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    task: dict[str, Any] = yaml.safe_load((resources.files("lm_eval") / "tasks/gsm8k/gsm8k.yaml").read_text())
    metric = {k: v for k, v in task["metric_list"][0].items() if k in {"regexes_to_ignore", "ignore_case"}}
    scores = {}
    for entry in task["filter_list"]:
        settings = {k: v for k, v in entry["filter"][0].items() if k != "function"}
        [[found]] = RegexFilter(**settings).apply([[text]], [row])
        scores[entry["name"]] = exact_match_hf_evaluate([found], [row["answer"]], **metric)["exact_match"]
    return {"flexible": scores["flexible-extract"], "strict": scores["strict-match"]}


@given(
    st.lists(st.sampled_from(["1,260", "1260", "#### ", "$", ".", ",", "-", " ", "7", "\n", "so ", "Q"]), max_size=8)
)
def test_equals_lm_eval(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert gsm8k.grade(ROW, text) == lm_evals_scores(ROW, text)


def test_a_model_is_scored(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / gsm8k.TASK.file
    file.parent.mkdir()
    file.write_text("".join(json.dumps({**ROW, "question": f"{i}?"}) + "\n" for i in range(3)))
    said = ["#### 1260", "#### 8", "1,260"]  # of the three rows: right, wrong, right without the mark
    monkeypatch.setattr(chat_task, "complete", lambda *_: said)
    found = chat_task.score(load(str(tiny_model)), gsm8k.TASK, Evaluate(data=str(tmp_path)))
    assert (found.metric, found.scores) == ("flexible", (1, 0, 1))
    assert [sample["strict"] for sample in found.samples] == [1, 0, 0]
    assert found.samples[1]["prompt"] == f"1?\n\n{gsm8k.INSTRUCTION}"


@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with gsm8k/")
def test_every_real_gold_answer_scores_1() -> None:
    rows = chat_task.read_rows(gsm8k.TASK, "$RECOUP_DATA")
    both = {"flexible": 1.0, "strict": 1.0}
    assert [number for number, row in enumerate(rows) if gsm8k.grade(row, gsm8k.gold(row)) != both] == []
