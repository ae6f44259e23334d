"""Which tasks there are, and one model on one of them."""

from collections.abc import Iterable
from types import ModuleType

from recoup.config import Evaluate
from recoup.errors import ConfigError, unknown_name
from recoup.evaluate import (
    chat_task,
    gsm8k,
    humaneval,
    ifeval,
    lambada,
    likelihood_task,
    offline,
    perplexity,
    published,
    science,
    tooluse,
    truthfulqa,
)
from recoup.evaluate.chat_task import ChatTask
from recoup.evaluate.file_task import FileTask, data_file
from recoup.evaluate.items import Report, silent
from recoup.evaluate.likelihood_task import LikelihoodTask
from recoup.models.load import LanguageModel
from recoup.results import TaskItems

CHAT_TASKS: dict[str, ChatTask] = {
    "tooluse": tooluse.TASK,
    "science": science.TASK,
    "ifeval": ifeval.TASK,
    "gsm8k_chat": gsm8k.TASK,
}
LIKELIHOOD_TASKS: dict[str, LikelihoodTask] = {
    "truthfulqa_mc1": truthfulqa.MC1,
    "truthfulqa_mc2": truthfulqa.MC2,
    "lambada_openai": lambada.TASK,
    "wikitext2": perplexity.WIKITEXT2,
    "c4": perplexity.C4,
}
PUBLISHED = ("tooluse", "science")  # graded as their papers do, too
ALSO_LM_EVALS = {"ifeval", "truthfulqa_mc1", "truthfulqa_mc2", "lambada_openai"}  # without a data folder, from the hub


def known_tasks() -> dict[str, str]:
    """Tasks that need no hub, with a line each; any other task name of lm-eval works where its data can be downloaded."""
    packaged = {name: task.about for name, task in offline.TASKS.items()}
    filed = {**CHAT_TASKS, **LIKELIHOOD_TASKS, humaneval.TASK.name: humaneval.TASK}
    return packaged | {name: task.about for name, task in filed.items()}


def check_tasks(names: Iterable[str], data: str | None, *, allow_code: bool = False) -> None:
    """Refuse unknown tasks, and tasks without their data folder, before any model is loaded.

    Raises:
        ConfigError: a name is unknown (near names are offered), or the task runs code and that is not allowed.
        DataError: a task's rows are missing.
    """
    for name in names:
        if task := _file_task(name, data):
            data_file(task, data)
        elif name == humaneval.TASK.name:
            humaneval.check(data, allow_code)
        elif name not in offline.TASKS and not offline.benchmark(name) and name not in _harness().known_names():
            raise ConfigError(unknown_name("task", name, {*known_tasks(), *_harness().known_names()}))


def score_task(model: LanguageModel, name: str, config: Evaluate, report: Report = silent) -> TaskItems:
    """One model on one task.

    Raises:
        DataError: the task's data cannot be had.
    """
    task = _file_task(name, config.data)
    if isinstance(task, ChatTask):
        found = chat_task.score(model, task, config, report)
        if name not in PUBLISHED:
            return found
        return found.model_copy(update={"ceilings": published.ceilings(task, chat_task.read_rows(task, config.data))})
    if isinstance(task, LikelihoodTask):
        return likelihood_task.score(model, task, config, report)
    if name == humaneval.TASK.name:
        return humaneval.score(model, config, report)
    result: TaskItems = _harness().score(model, name, config, report)
    return result


def _file_task(name: str, data: str | None) -> FileTask | None:
    """The task over a file of the data folder, unless there is no folder and lm-eval can download the same task."""
    if data is None and name in ALSO_LM_EVALS:
        return None
    return CHAT_TASKS.get(name) or LIKELIHOOD_TASKS.get(name)


def _harness() -> ModuleType:
    """lm-eval takes seconds to import: only an evaluation pays."""
    from recoup.evaluate import harness  # noqa: PLC0415

    return harness
