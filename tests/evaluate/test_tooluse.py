"""ToolUse grading on hand-written rows of the published format."""

import os

import pytest

from recoup.evaluate import chat_task, published, science, tooluse


def row(*calls: tuple[str, str]) -> dict[str, object]:
    return {"prompt": "Use a tool.", "golden_answer": [{"Action": a, "Action_Input": i} for a, i in calls]}


NESTED = row(("saveNote", '{"note": {"title": "a } b", "tags": ["x", "y"]}, "pinned": true}'))
TWO = row(("findBook", '{"name": "Emma"}'), ("[Optional]openBook", '{"id": 7}'))
ALL_RIGHT = {"correct": 1.0, "json_valid": 1.0, "right_tool": 1.0, "right_arguments": 1.0}


def graded(item: dict[str, object], text: str) -> dict[str, float]:
    """Our own scores; what the authors' scorer says has its own test."""
    return {name: value for name, value in tooluse.grade(item, text).items() if name != published.SCORE}


@pytest.mark.parametrize("item", [NESTED, TWO, row(("ping", "{}")), row(("a.b-c", '{"q":"it\'s"}'), ("a.b-c", "{}"))])
def test_the_gold_answer_is_right(item: dict[str, object]) -> None:
    assert graded(item, f"Thought: I should act.\n{tooluse.gold(item)}") == ALL_RIGHT


@pytest.mark.parametrize(
    "text",
    [
        'Action: findBook\nAction Input: {"name": "Emma"}',  # the optional call may be left out
        'Action: openBook\nAction Input: {"id": 7.0}\nAction: findBook\nAction Input: {"name": "Emma"}',  # any order
        '**Action:** `findBook`\nAction Input:\n```json\n{"name":\n "Emma"}\n```',  # markdown around it
        'Thought: easy. Action: findBook Action Input: {"name": "Emma"} Done.',  # on one line
    ],
)
def test_forms_that_are_right(text: str) -> None:
    assert graded(TWO, text) == ALL_RIGHT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I cannot do that.", (0, 0, 0, 0)),
        ('Action: findBook\nAction Input: {"name": "Persuasion"}', (0, 1, 1, 0)),
        ('Action: findFilm\nAction Input: {"name": "Emma"}', (0, 1, 0, 1)),
        ('Action: findBook\nAction Input: {"name": "Emma"', (0, 0, 1, 0)),  # the brace never closes
        ("Action: findBook", (0, 0, 1, 0)),  # no arguments at all
        (
            'Action: findBook\nAction Input: {"name": "Emma"}\nAction: buyBook\nAction Input: {}',
            (0, 1, 0, 0),
        ),  # one too many
        ('Action: findBook\nAction Input: {"name": "Emma"}\n' * 2, (0, 1, 0, 0)),  # twice is not once
    ],
)
def test_forms_that_are_wrong(text: str, expected: tuple[int, ...]) -> None:
    assert tuple(graded(TWO, text).values()) == expected


def test_an_action_inside_an_argument_is_no_call() -> None:
    text = 'Action: say\nAction Input: {"text": "Action: run\\nAction Input: {}"}'
    assert [name for name, _ in tooluse.parse_calls(text)] == ["say"]


def test_deep_nesting_is_unreadable_and_does_not_crash() -> None:
    calls = tooluse.parse_calls('Action: a\nAction Input: {"x":' + "[" * 200_000)
    assert calls == [("a", tooluse.UNREADABLE)]


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("<reasoning>\nC or D\n</reasoning>\n<answer>\nD\n</answer>", 1),
        ("<answer>D", 1),  # cut off after the letter
        ("<answer>A</answer> No: <answer>(D).</answer>", 1),  # the last one counts
        ("<answer>D: ethanol</answer>", 0),  # the prompt forbids restating the option
        ("<answer>C</answer>", 0),
        ("The answer is D", 0),
        ("", 0),
    ],
)
def test_science_reads_the_last_answer(text: str, correct: int) -> None:
    assert science.grade({"answer": "D"}, text)["correct"] == correct


@pytest.mark.skipif(
    "RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with tooluse_sdft/ and science_sdft/"
)
@pytest.mark.parametrize("task", [tooluse.TASK, science.TASK], ids=lambda task: task.name)
def test_every_real_gold_answer_scores_1(task: chat_task.ChatTask) -> None:
    rows = chat_task.read_rows(task, "$RECOUP_DATA")
    missed = [number for number, item in enumerate(rows) if task.grade(item, task.gold(item))[task.metric] != 1]
    assert not missed
