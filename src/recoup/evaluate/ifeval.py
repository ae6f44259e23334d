"""IFEval (Zhou et al., arXiv 2311.07911): instructions that a program can check, such as "use no commas".

The checkers are lm-eval's (0.4.13), asked through the chat template. They need packages that lm-eval installs as its extra
`ifeval`, and two kinds of instruction need NLTK's `punkt_tab` data, which is never downloaded from here: without it these
instructions are left out, rows that had no others too, and the log says how many. Left to themselves the language
detector is random, and so is a letter count where the letter is none (one row asks for "!"); here both are seeded, so that
equal texts get equal scores.
"""

import functools
import importlib
import io
import logging
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from unittest import mock

from recoup.errors import ConfigError
from recoup.evaluate.chat_task import ChatTask, Row
from recoup.run_folder import read_jsonl

logger = logging.getLogger(__name__)

MAX_TOKENS = 1280  # lm-eval's
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
SEED = 0


def messages(row: Row) -> list[dict[str, str]]:
    """The prompt as it is."""
    return [{"role": "user", "content": str(row["prompt"])}]


def gold(row: Row) -> str:
    """The instructions that are checked; an answer that follows them is not part of the data."""
    return "\n".join(_names(row)[place] for place in checkable(row))


def grade(row: Row, text: str) -> dict[str, float]:
    """Whether all instructions are followed (`prompt_*`), and the share of them that is (`instruction_*`).

    `strict` takes the text as it is; `loose` also forgives asterisks, a first line and a last line.
    """
    checkers, places = load_checkers(), checkable(row)
    item = checkers.InputExample(
        key=row["key"],
        instruction_id_list=[_names(row)[place] for place in places],
        prompt=row["prompt"],
        kwargs=[row["kwargs"][place] for place in places],
    )
    with _seeded():
        strict = checkers.test_instruction_following_strict(item, text).follow_instruction_list
    with _seeded():
        loose = checkers.test_instruction_following_loose(item, text).follow_instruction_list
    return {
        "prompt_strict": float(all(strict)),
        "instruction_strict": sum(strict) / len(strict),
        "prompt_loose": float(all(loose)),
        "instruction_loose": sum(loose) / len(loose),
    }


def read(path: Path) -> list[Row]:
    """Rows with an instruction that can be checked here; what is left out is logged, once.

    Raises:
        ConfigError: lm-eval's extra `ifeval` is not installed.
        DataError: the file is missing, or a line is not a JSON object.
    """
    load_checkers()
    rows = read_jsonl(path)
    kept = [row for row in rows if not _names(row) or checkable(row)]  # `grade` refuses a row without instructions
    left_out = Counter(name for row in rows for name in _names(row) if not _checks(name))
    if left_out:
        names = ", ".join(f"{count} x {name}" for name, count in sorted(left_out.items()))
        _say_once(
            f"{path}: left out {names}, and so {len(rows) - len(kept)} of {len(rows)} prompts that ask for nothing else: "
            "they need NLTK's data; run: python -m nltk.downloader punkt_tab"
        )
    return kept


def checkable(row: Row) -> list[int]:
    """Places of the instructions of a row that can be checked here.

    Raises:
        ValueError: the row has no instructions.
    """
    if not _names(row):
        raise ValueError("no list of instructions")
    return [place for place, name in enumerate(_names(row)) if _checks(name)]


@functools.cache
def load_checkers() -> ModuleType:
    """lm-eval's checkers. They would download NLTK's data while being imported; this keeps them from it.

    Raises:
        ConfigError: lm-eval's extra `ifeval` is not installed.
    """
    try:
        nltk, langdetect = importlib.import_module("nltk"), importlib.import_module("langdetect")
        with mock.patch.object(nltk, "download"), redirect_stdout(io.StringIO()):
            checkers = importlib.import_module("lm_eval.tasks.ifeval.utils")
    except ImportError as error:
        raise ConfigError(
            f"task 'ifeval' needs the package {error.name!r}; run: pip install 'lm-eval[ifeval]'"
        ) from None
    langdetect.DetectorFactory.seed = SEED
    return checkers


def has_punkt() -> bool:
    """Whether NLTK finds the data that tells sentences and words apart."""
    try:
        importlib.import_module("nltk").data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _names(row: Row) -> list[str]:
    names = row.get("instruction_id_list")
    return names if isinstance(names, list) else []


def _checks(instruction: str) -> bool:
    return instruction not in NEEDS_PUNKT or has_punkt()


@contextmanager
def _seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(state)


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)


TASK = ChatTask(
    name="ifeval",
    file="ifeval/input_data.jsonl",
    metric="prompt_strict",
    max_tokens=MAX_TOKENS,
    messages=messages,
    gold=gold,
    grade=grade,
    read=read,
    about="instructions that a program can check (needs evaluate.data)",
)
