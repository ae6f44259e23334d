"""Score a model on an lm-eval task, item by item. Imports lm-eval, which is slow: `tasks.py` imports this when needed.

Task definitions, prompts and metrics are lm-eval's (0.4.13); the loop over them is here, because recoup needs the same
items for every model, drawn by the seed, and one score per item. The data is the local copy where one is packaged
(`offline.py`), else what lm-eval downloads. A task that is a group (MMLU) is pooled over its members.
"""

import functools
import io
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from recoup.config import Evaluate
from recoup.errors import ConfigError, DataError
from recoup.evaluate import offline
from recoup.evaluate.items import NUM_SAMPLES, Report, choose, silent
from recoup.evaluate.log_likelihood import BatchedLM
from recoup.models.load import LanguageModel
from recoup.results import TaskItems

PREFERRED_METRICS = ("acc_norm", "acc", "exact_match")  # the first that a task has
FEWSHOT_SEED = 1234  # lm-eval's default
DATA_SEED = 0  # lm-eval's default: some tasks shuffle their answers while loading
CACHED_TASKS = 8


def score(model: LanguageModel, task: str, config: Evaluate, report: Report = silent) -> TaskItems:
    """One model on one lm-eval task.

    Raises:
        DataError: the task's data cannot be had, or it has no score per item.
        ConfigError: the task needs images or runs code that a model wrote.
    """
    members = load_task(task)
    chosen = _chosen(members, config.limit_of(task), config.seed, task)
    with _quiet():
        for name, ids in chosen.items():
            members[name].build_all_requests(samples=set(ids))
    _answer(BatchedLM(model, config.batch_tokens, report), [members[name] for name in chosen])
    scored = [row for name, ids in chosen.items() for row in _scored(members[name], name, ids)]
    metrics = {metric for _, metric, _ in scored}
    if len(metrics) > 1:
        raise ConfigError(f"task {task!r} mixes the metrics {', '.join(sorted(metrics))}; name its members one by one")
    return TaskItems(
        task=task,
        metric=metrics.pop(),
        item_ids=tuple(sample["item"] for sample, _, _ in scored),
        scores=tuple(value for _, _, value in scored),
        samples=tuple({**sample, "score": value} for sample, _, value in scored[:NUM_SAMPLES]),
    )


@functools.cache
def known_names() -> frozenset[str]:
    """Names of all tasks, groups and tags of lm-eval (indexing takes seconds)."""
    return frozenset(_everything().all_tasks)


@functools.lru_cache(maxsize=CACHED_TASKS)
def load_task(task: str) -> dict[str, Any]:
    """The lm-eval tasks that `task` stands for, by name, with their data.

    Raises:
        DataError: the data cannot be loaded.
        ConfigError: the task needs images or runs code that a model wrote.
    """
    packaged = offline.benchmark(task)
    try:
        with _quiet():
            members: dict[str, Any] = _local(task, packaged) if packaged else _everything().load(task)["tasks"]
            for member in members.values():
                _prepare(member)
    except Exception as error:  # task code is anyone's, and the hub client raises a dozen unrelated kinds
        hint = f"; run: {offline.INSTALL}" if task in offline.TASKS else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"task {task!r}: cannot load its data ({reason}){hint}") from None
    for name, member in members.items():
        if getattr(member, "UNSAFE_CODE", False) or getattr(member, "MULTIMODAL", False):
            raise ConfigError(f"task {name!r} needs images or runs code that a model wrote; recoup does neither")
    return members


@functools.cache
def _everything() -> TaskManager:
    with _quiet():
        return TaskManager()


def _local(task: str, packaged: offline.Packaged) -> dict[str, Any]:
    """lm-eval's definition over local files. Only this benchmark's folder is indexed: the whole index takes seconds."""
    folder = Path(lm_eval.tasks.__file__).parent / packaged.yaml
    manager = TaskManager(include_defaults=False, include_path=str(folder))
    members = [{"task": name, **_local_data(name)} for name in offline.leaves(task)]
    return dict(manager.load({"group": f"offline_{task}", "task": members})["tasks"])


def _local_data(task: str) -> dict[str, Any]:
    """Settings that swap the data of one lm-eval task for the files of the package."""
    data = {split: _read(file) for split, file in offline.splits(task).items()}
    settings: dict[str, Any] = {
        "custom_dataset": lambda **_: data,
        "training_split": None,
        "validation_split": "validation",
        "test_split": "test" if "test" in data else None,
    }
    if "dev" not in data:  # else lm-eval takes its few-shot examples from a split that is not here
        settings["fewshot_config"] = {"samples": []}
    return settings


def _read(file: Path) -> Dataset:
    if file.suffix == ".gz":
        return Dataset.from_list(offline.boolq_rows(file))
    return Dataset.from_file(str(file), in_memory=True)  # on disk, datasets would write its caches beside the file


def _prepare(task: Task) -> None:
    """What lm-eval does between loading and running a task, and its documents made once.

    lm-eval walks through all of them several times a run, however few are scored, and rows of a data set are slow to make.
    """
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    split = task.config.test_split or task.config.validation_split
    if isinstance(task.dataset, dict) and split in task.dataset:
        task.dataset = {**task.dataset, split: list(task.eval_docs)}
        task.set_config("process_docs", None)


def _chosen(members: Mapping[str, Task], limit: int | None, seed: int, task: str) -> dict[str, list[int]]:
    """Document numbers by member, drawn from the pool of all members; members without any are left out."""
    pool = [(name, number) for name, member in members.items() for number in range(len(member.eval_docs))]
    chosen: dict[str, list[int]] = {}
    for place in choose(len(pool), limit, seed, task):
        name, number = pool[place]
        chosen.setdefault(name, []).append(number)
    return chosen


def _answer(lm: BatchedLM, tasks: list[Task]) -> None:
    """Run the requests of all tasks together, each kind at once, and keep the answers in them."""
    kinds: dict[str, list[Any]] = {}
    for task in tasks:
        for request in task.instances:
            kinds.setdefault(request.request_type, []).extend([request] * request.repeats)
    for kind, requests in kinds.items():
        for request, answer in zip(requests, getattr(lm, kind)(requests), strict=True):
            request.resps.append(answer)


def _scored(task: Task, name: str, ids: list[int]) -> Iterator[tuple[dict[str, Any], str, float]]:
    """(what the report shows, metric, score) of each document."""
    task.apply_filters()
    by_document: dict[int, list[Any]] = {}
    for request in task.instances:
        by_document.setdefault(request.doc_id, []).append(request)
    chosen_filter = next(iter(task.instances[0].filtered_resps))
    for (place, document), number in zip(task.doc_iterator(samples=set(ids)), ids, strict=True):
        requests = sorted(by_document[place], key=lambda request: request.idx)
        values = task.process_results(document, [request.filtered_resps[chosen_filter] for request in requests])
        metric, value = _metric(name, values, task.higher_is_better())
        sample = {
            "item": f"{name}/{number}",
            "prompt": str(requests[0].args[0]),
            "answers": [[str(request.args[-1]), str(request.resps[0])] for request in requests],
            "gold": str(task.doc_to_target(document)),
        }
        yield sample, metric, value


def _metric(task: str, values: Mapping[str, Any], higher_is_better: Mapping[str, bool]) -> tuple[str, float]:
    """The score of one document that models are compared by."""
    for metric in PREFERRED_METRICS:
        if metric in values:
            return metric, float(values[metric])
    for metric, value in values.items():
        if higher_is_better.get(metric, True) and isinstance(value, bool | int | float):
            return metric, float(value)
    raise DataError(f"task {task!r} has no score per item (only {', '.join(values)}); choose another task")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' bars and notes off the screen, and shuffles inside task code the same every time."""
    logger, state = logging.getLogger("lm_eval"), random.getstate()
    level = logger.level
    logger.setLevel(logging.ERROR)
    random.seed(DATA_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
