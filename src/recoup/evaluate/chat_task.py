"""Tasks whose items are conversations: the model answers greedily through its chat template, and the text is graded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recoup.config import Evaluate
from recoup.data.chat import Messages, prompt_ids
from recoup.errors import DataError
from recoup.evaluate.completion import complete
from recoup.evaluate.file_task import FileTask, data_file
from recoup.evaluate.items import NUM_SAMPLES, Report, choose, silent
from recoup.models.load import LanguageModel
from recoup.models.sample import Sampling
from recoup.results import TaskItems
from recoup.run_folder import read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class ChatTask(FileTask):
    """One task. `grade` gives named scores in [0, 1]."""

    max_tokens: int
    messages: Callable[[Row], Messages]
    gold: Callable[[Row], str]  # the right answer as a model would write it
    grade: Callable[[Row, str], dict[str, float]]
    read: Callable[[Path], list[Row]] = read_jsonl  # the rows that can be graded


def read_rows(task: ChatTask, data: str | None) -> list[Row]:
    """Rows of `task`, each known to hold a prompt and a gold answer.

    Raises:
        DataError: the file is missing, or a row lacks a field.
    """
    path = data_file(task, data)
    rows = task.read(path)
    for number, row in enumerate(rows, start=1):
        try:
            task.messages(row), task.grade(row, task.gold(row))
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, row {number}: not a row of {task.name} ({type(error).__name__}: {error})"
            ) from None
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def score(model: LanguageModel, task: ChatTask, config: Evaluate, report: Report = silent) -> TaskItems:
    """One model on one task.

    Raises:
        DataError: as for `read_rows`.
        SourceError: the model has no chat template.
    """
    rows = read_rows(task, config.data)
    chosen = choose(len(rows), config.limit_of(task.name), config.seed, task.name)
    prompts = [prompt_ids(model.tokenizer, task.messages(rows[number])) for number in chosen]
    texts = complete(model, prompts, Sampling(config.new_tokens(task.max_tokens)), config.batch_tokens, report)
    grades = [task.grade(rows[number], text) for number, text in zip(chosen, texts, strict=True)]
    samples = [
        {
            "item": f"{task.name}/{number}",
            "prompt": task.messages(rows[number])[-1]["content"],
            "completion": text,
            "gold": task.gold(rows[number]),
            **grade,
        }
        for number, text, grade in zip(chosen, texts, grades, strict=True)
    ]
    return TaskItems(
        task=task.name,
        metric=task.metric,
        item_ids=tuple(str(sample["item"]) for sample in samples),
        scores=tuple(grade[task.metric] for grade in grades),
        further={name: tuple(grade[name] for grade in grades) for name in grades[0] if name != task.metric},
        samples=tuple(samples[:NUM_SAMPLES]),
    )
