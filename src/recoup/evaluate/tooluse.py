r"""ToolUse, the task of SDFT (arXiv 2601.19897): call the right tools with the right arguments (ToolAlpaca).

An item is right when the calls in the answer are the gold calls, in any order, with equal arguments as JSON. Gold calls
marked `[Optional]` may be left out. The published scorer matches braces non-greedily and names as `\w+`, and so rejects the
gold answer on items with nested arguments or marked names; here a JSON parser reads each argument object to its own end,
and the gold answer always scores 1. What the published scorer says is kept beside (`published`).
"""

import json
import re
from typing import Any

from recoup.evaluate import published
from recoup.evaluate.chat_task import ChatTask, Row

MAX_TOKENS = 512  # the longest gold answer is some 200 tokens; the rest is for thoughts
OPTIONAL = "[Optional]"
ACTION = re.compile(r"\bAction\s*:[\s*`\"']*(?:\[Optional\])?\s*(?P<name>[\w.-]+)")
INPUT = re.compile(r"\bAction[ _]Input\s*:")
UNREADABLE = object()  # arguments that are not a JSON object; equal to nothing

Call = tuple[str, Any]  # tool, arguments


def messages(row: Row) -> list[dict[str, str]]:
    """The conversation of a row."""
    return [{"role": "user", "content": str(row["prompt"])}]


def gold(row: Row) -> str:
    """The gold calls in the format that the prompt asks for."""
    return "\n".join(f"Action: {call['Action']}\nAction Input: {call['Action_Input']}" for call in row["golden_answer"])


def grade(row: Row, text: str) -> dict[str, float]:
    """`correct`, what may be wrong (`json_valid`, `right_tool`, `right_arguments`), and what the authors' scorer says."""
    calls = parse_calls(text)
    wanted = [(call, name.startswith(OPTIONAL)) for call, name in zip(_gold_calls(row), _gold_names(row), strict=True)]
    return {
        "correct": float(_matches(calls, wanted)),
        "json_valid": float(bool(calls) and all(arguments is not UNREADABLE for _, arguments in calls)),
        "right_tool": float(_matches([name for name, _ in calls], [(name, o) for (name, _), o in wanted])),
        "right_arguments": float(_matches([given for _, given in calls], [(given, o) for (_, given), o in wanted])),
        published.SCORE: published.tooluse(row, text),
    }


def parse_calls(text: str) -> list[Call]:
    """The calls in an answer: every `Action:` with the JSON object after its `Action Input:`."""
    calls: list[Call] = []
    action = ACTION.search(text)
    while action:
        following = ACTION.search(text, action.end())
        given, end = _arguments(text, action.end(), following.start() if following else len(text))
        calls.append((action["name"], given))
        action = ACTION.search(text, end)
    return calls


def _arguments(text: str, start: int, stop: int) -> tuple[Any, int]:
    """The JSON object whose `Action Input:` lies between `start` and `stop`, and where it ends.

    The JSON parser finds the end, whatever braces, quotes and `Action:` the object holds.
    """
    label = INPUT.search(text, start, stop)
    brace = text.find("{", label.end(), stop) if label else -1
    if brace < 0:
        return UNREADABLE, start
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, brace)
    except (ValueError, RecursionError):
        return UNREADABLE, start


def _gold_names(row: Row) -> list[str]:
    return [str(call["Action"]) for call in row["golden_answer"]]


def _gold_calls(row: Row) -> list[Call]:
    inputs = [json.loads(call["Action_Input"], strict=False) for call in row["golden_answer"]]
    return [(name.removeprefix(OPTIONAL).strip(), given) for name, given in zip(_gold_names(row), inputs, strict=True)]


def _matches(given: list[Any], wanted: list[tuple[Any, bool]]) -> bool:
    """Whether `given` holds every wanted value once, and besides them only optional ones."""
    left = list(given)
    for value, optional in sorted(wanted, key=lambda pair: pair[1]):
        if value in left:
            left.remove(value)
        elif not optional:
            return False
    return not left


TASK = ChatTask(
    name="tooluse",
    file="tooluse_sdft/eval_97.jsonl",
    metric="correct",
    max_tokens=MAX_TOKENS,
    messages=messages,
    gold=gold,
    grade=grade,
    about="right tools with right arguments (needs evaluate.data)",
)
