"""Science, the task of SDFT (arXiv 2601.19897): multiple-choice chemistry, answered with a letter (SciKnowEval L-3).

An item is right when the last `<answer>` of the text holds the right letter and nothing else, which is what the system
prompt of every row asks for; brackets and a full stop around the letter are forgiven. The authors' scorer, which is kept
beside (`published`), forgives nothing.
"""

import re

from recoup.evaluate import published
from recoup.evaluate.chat_task import ChatTask, Row

MAX_TOKENS = 1024  # room for the reasoning the prompt asks for
ANSWER = re.compile(r"<answer>(.*?)(?=</answer>|<answer>|$)", re.DOTALL)
AROUND = " \t\r\n().:*"


def messages(row: Row) -> list[dict[str, str]]:
    """The conversation of a row: what to do, then the question."""
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in row["prompt"]]


def gold(row: Row) -> str:
    """The right letter in the format that the prompt asks for."""
    return f"<answer>\n{row['answer']}\n</answer>"


def grade(row: Row, text: str) -> dict[str, float]:
    """`correct`, whether an answer of the right form was given at all (`answered`), and what the authors' scorer says."""
    answers = ANSWER.findall(text)
    letter = answers[-1].strip(AROUND) if answers else ""
    return {
        "correct": float(letter == row["answer"]),
        "answered": float(letter in {"A", "B", "C", "D"}),
        published.SCORE: published.science(row, text),
    }


TASK = ChatTask(
    name="science",
    file="science_sdft/eval_507_paper.jsonl",
    metric="correct",
    max_tokens=MAX_TOKENS,
    messages=messages,
    gold=gold,
    grade=grade,
    about="chemistry, multiple choice with reasoning (needs evaluate.data)",
)
