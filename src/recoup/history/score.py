"""One checkpoint on every capability: benchmarks by their own score, groups of prompts by their answers' log-probability.

A row of a group is scored by the mean log-probability of its answer's tokens, nats: log p(answer | prompt) / tokens. Rows are
laid out once, by the student's tokenizer and chat template, so that every checkpoint reads the same token ids, whatever its
own template. Rows come from the part of the file that a repair trains on: choosing teachers is a part of the repair, and the
held-out fifth stays unseen for its proof.
"""

import hashlib
import math
from dataclasses import dataclass

from recoup.config import Evaluate, History
from recoup.data.prompts import Prompt, answered, load_prompts
from recoup.errors import ConfigError, DataError, SourceError
from recoup.evaluate.continuations import continuation_logp
from recoup.evaluate.tasks import check_tasks, score_task
from recoup.models.load import LanguageModel
from recoup.results import TaskItems
from recoup.run_folder import read_jsonl, user_path

LOG_PROBABILITY = "mean log-probability"  # metric of a group, nats a token
MIN_ITEMS = 2  # one to choose by, one to judge by


@dataclass(frozen=True)
class Capability:
    """A benchmark, or rows of the prompt file that are to be answered as they are answered there."""

    name: str
    is_task: bool
    group: str | None = None  # of the prompt file; null: all rows
    rows: tuple[Prompt, ...] = ()

    @property
    def item_ids(self) -> tuple[str, ...]:
        """What tells the rows apart, and from those of another file: a digest of prompt and answer."""
        return tuple(hashlib.sha256(repr((row.ids, row.answer)).encode()).hexdigest()[:16] for row in self.rows)


def check(config: History) -> tuple[str | None, ...]:
    """Refuse what cannot be scored before any model is loaded; returns the groups of the prompt file.

    A file whose rows have no group is one group, null. Rows without one beside rows with one are passed over.

    Raises:
        ConfigError: a task is unknown.
        DataError: a task's rows or the prompt file cannot be had.
    """
    check_tasks(config.tasks, config.data)
    if config.prompts is None:
        return ()
    if not config.prompts.endswith(".jsonl"):
        raise DataError(f"{config.prompts}: the prompts of a history need answers; give a .jsonl file")
    rows = read_jsonl(user_path(config.prompts))
    named = sorted({str(row["group"]) for row in rows if row.get("group") is not None})
    return tuple(named) if named else (None,)


def capabilities(
    config: History, groups: tuple[str | None, ...], student: LanguageModel, seed: int
) -> tuple[Capability, ...]:
    """Benchmarks first, then groups, which share `num_prompts` evenly. A group called like a benchmark is told apart.

    Raises:
        ConfigError: `num_prompts` is too few for so many groups.
        DataError: a group has too few rows with answers.
        SourceError: the student has no chat template.
    """
    tasks = tuple(Capability(task, is_task=True) for task in dict.fromkeys(config.tasks))
    if config.prompts is None:
        return tasks
    share = config.num_prompts // len(groups)
    if share < MIN_ITEMS:
        raise ConfigError(
            f"num_prompts {config.num_prompts} is too few for {len(groups)} groups; give some 32 for each"
        )
    return tasks + tuple(_group(config, group, student, share, seed) for group in groups)


def score(model: LanguageModel, capability: Capability, config: Evaluate) -> TaskItems:
    """One model on one capability, a score an item.

    Raises:
        DataError: a benchmark's data cannot be had, or an answer does not fit the model's context.
        SourceError: the model has no chat template where a task needs it, or gives what is not a number.
    """
    items = score_task(model, capability.name, config) if capability.is_task else _answers(model, capability, config)
    if not all(math.isfinite(value) for value in items.scores):
        raise SourceError(
            f"{model.name}: gives NaN or infinity on {capability.name}; its weights are broken, leave it out"
        )
    return items


def _answers(model: LanguageModel, capability: Capability, config: Evaluate) -> TaskItems:
    pairs = [(row.ids, row.answer or ()) for row in capability.rows]
    logps = continuation_logp(model, pairs, config.batch_tokens)
    scores = tuple(logp / len(answer) for (logp, _), (_, answer) in zip(logps, pairs, strict=True))
    return TaskItems(task=capability.name, metric=LOG_PROBABILITY, item_ids=capability.item_ids, scores=scores)


def _group(config: History, group: str | None, student: LanguageModel, count: int, seed: int) -> Capability:
    source = str(config.prompts)
    rows = answered(load_prompts(source, student, count, seed, "train", group), source)
    name = group or user_path(source).stem
    if len(rows) < MIN_ITEMS:
        raise DataError(
            f"{source}: {len(rows)} answered row of {name!r} to train on; a capability needs {MIN_ITEMS} at least"
        )
    shown = f"{name} (prompts)" if name in config.tasks else name
    return Capability(shown, is_task=False, group=group, rows=tuple(rows))
