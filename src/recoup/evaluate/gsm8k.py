"""GSM8K (Cobbe et al., arXiv 2110.14168): grade-school mathematics, reasoned in words, graded by the final number.

Zero-shot through the chat template, so not the number of lm-eval's `gsm8k` task, which shows five examples to a base model;
the name says so. Reading the answer is lm-eval's (`gsm8k.yaml`, 0.4.13): `flexible` takes the last number of the text,
`strict` the first number after "####". Numbers are compared as text without commas, dollar signs and a final full stop:
18.00 is not 18.
"""

import re

from recoup.evaluate.chat_task import ChatTask, Row

MAX_TOKENS = 512  # the longest gold solution has some 370 (SmolLM2 tokens)
INSTRUCTION = 'Reason step by step. Write the final number after "####".'
STRICT = re.compile(r"#### (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
IGNORED = re.compile(r"[,$]")


def messages(row: Row) -> list[dict[str, str]]:
    """The question, and in which form it is to be answered."""
    return [{"role": "user", "content": f"{row['question']}\n\n{INSTRUCTION}"}]


def gold(row: Row) -> str:
    """The published solution, which ends with "#### " and the number."""
    return str(row["answer"])


def grade(row: Row, text: str) -> dict[str, float]:
    """`flexible`: the last number is right; `strict`: the first one after "####" is."""
    _, _, wanted = gold(row).rpartition("#### ")
    numbers, marked = NUMBER.findall(text), STRICT.findall(text)
    return {
        "flexible": float(bool(numbers) and plain(numbers[-1]) == plain(wanted)),
        "strict": float(bool(marked) and plain(marked[0]) == plain(wanted)),
    }


def plain(number: str) -> str:
    """A number without commas, dollar signs and a final full stop."""
    return IGNORED.sub("", number).strip().removesuffix(".")


TASK = ChatTask(
    name="gsm8k_chat",
    file="gsm8k/test.jsonl",
    metric="flexible",
    max_tokens=MAX_TOKENS,
    messages=messages,
    gold=gold,
    grade=grade,
    about="grade-school mathematics, zero-shot (needs evaluate.data)",
)
