r"""ToolUse and Science as the SDFT authors score them (arXiv 2601.19897, `eval_tooluse.py` and `eval_science.py`).

For comparison with published numbers only: beside our own scores, never instead of them. The ToolUse scorer reads names as
`\w+` and arguments up to the first closing brace, so it misses names with a dash or dot, marked names and nested arguments, in
gold answers too; it throws all calls' arguments into one dictionary, where a later one overwrites an earlier one of the
same name and arguments may sit at the wrong call; and it knows no optional calls. The Science scorer compares the text after
the last `<answer>`, brackets and full stops included, and takes the whole text where there is no such mark.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from recoup.evaluate.chat_task import ChatTask, Row

SCORE = "correct_as_published"
NAME = re.compile(r"Action:\s*(\w+)")
ARGUMENTS = re.compile(r"Action Input:\s*({.*?})", re.DOTALL)


def tooluse(row: Row, text: str) -> float:
    """1 when the tools are the gold ones, each as often, and all arguments in one dictionary are."""
    calls = row["golden_answer"]
    same_tools = Counter(NAME.findall(text)) == Counter(str(call["Action"]) for call in calls)
    return float(same_tools and _merged(ARGUMENTS.findall(text)) == _merged(call["Action_Input"] for call in calls))


def science(row: Row, text: str) -> float:
    """1 when the text between the last `<answer>` and what closes it is the letter."""
    answer, _, _ = text.rsplit("<answer>", maxsplit=1)[-1].partition("</answer>")
    return float(answer.strip() == row["answer"])


def ceilings(task: ChatTask, rows: Sequence[Row]) -> dict[str, float]:
    """What the gold answers themselves get, for each named score: the mean over `rows`, in [0, 1].

    Args:
        task: whose scores.
        rows: of that task, at least one.
    """
    grades = [task.grade(row, task.gold(row)) for row in rows]
    return {name: sum(grade[name] for grade in grades) / len(grades) for name in grades[0]}


def _merged(blocks: Iterable[str]) -> dict[str, Any]:
    """All objects in one; what cannot be read is left out."""
    merged: dict[str, Any] = {}
    for block in blocks:
        try:
            merged.update(json.loads(block))
        except (ValueError, TypeError, RecursionError):
            continue
    return merged
