"""The tournament: every checkpoint of a history on every capability, and who should teach what.

One model is in memory at a time. Scores are written per checkpoint and capability under `scores/`, so that a stopped
tournament goes on and a longer history scores only what is new; `result.json` is written last. A checkpoint that turns out not
to load is named and left out: it shall not cost the others their scores.
"""

import functools
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from recoup.config import Evaluate, History
from recoup.errors import ConfigError, DataError, SourceError, StructureError
from recoup.evaluate.stored import fingerprint, score_key, stored_or_scored
from recoup.history.choose import choose, compared
from recoup.history.find import find_checkpoints
from recoup.history.score import MIN_ITEMS, Capability, capabilities, check, score
from recoup.history.terms import assign
from recoup.models.load import LanguageModel, load
from recoup.progress import Progress, silent
from recoup.results import CheckpointScores, HistoryResult, TaskItems
from recoup.run_folder import result_path, write_text

SLUG_LETTERS = 40  # of a name that a file is called by


@dataclass(frozen=True)
class HistoryInputs:
    """Whose teachers are chosen, and among which checkpoints."""

    student: str  # as for `load`
    folder: Path  # of checkpoints, of a run, or a text file with a model a line
    seed: int  # decides the items, their halves and the resampling
    chat_template: str | Path | None = None  # as for `load`
    dtype: torch.dtype = torch.bfloat16  # of the weights in memory


def run(config: History, inputs: HistoryInputs, output: Path, progress: Progress = silent) -> HistoryResult:
    """Score the history and write `scores/` and, last, `result.json` to `output`.

    Raises:
        ConfigError: a task is unknown, or there are too few items to choose by.
        DataError: no checkpoint can be loaded, or a task's or group's rows cannot be had.
        SourceError: the student cannot be loaded.
        RunFolderError: `output` cannot be written.
    """
    started = time.perf_counter()
    groups = check(config)
    found = find_checkpoints(inputs.folder, config.last)
    for line in found.left_out:
        progress(line, 1, 1)
    total = len(found.checkpoints) + 1
    progress("history: the student", 0, total)
    scorer, base = _student_first(config, inputs, output, groups)
    itself = fingerprint(inputs.student)
    scored: dict[str, tuple[TaskItems, ...]] = {}
    left_out = list(found.left_out)
    for place, name in enumerate(found.checkpoints, start=1):
        progress(f"history: {name}", place, total)
        try:
            scored[name] = base if fingerprint(name) == itself else scorer.items(name, partial(scorer.load, name))
        except (SourceError, StructureError) as error:
            left_out.append(f"{name} left out: {error}")
            progress(left_out[-1], 1, 1)
    progress("history: choose teachers", total, total)
    chosen = _result(scorer, base, scored, time.perf_counter() - started)
    result = chosen.model_copy(update={"left_out": tuple(left_out)})
    write_text(result_path(output), result.model_dump_json(indent=2) + "\n")
    return result


@dataclass(frozen=True)
class _Scorer:
    """What is the same for every checkpoint."""

    config: History
    inputs: HistoryInputs
    output: Path
    capabilities: tuple[Capability, ...]
    vocabulary: dict[str, int]  # the student's

    def load(self, name: str) -> LanguageModel:
        """A checkpoint whose tokens are the student's.

        Raises:
            SourceError: it cannot be loaded, or its tokens are others.
        """
        model = load(name, dtype=self.inputs.dtype, chat_template=self.inputs.chat_template)
        own = model.tokenizer.get_vocab()
        if any(self.vocabulary.get(token, id_) != id_ for token, id_ in own.items()):
            raise SourceError(
                f"{name}: its tokenizer is not the student's; only a model with the same tokens can teach it"
            )
        return model

    def items(self, name: str, load_model: Callable[[], LanguageModel]) -> tuple[TaskItems, ...]:
        """A checkpoint on every capability; it is loaded only if a score is not stored yet."""
        evaluate = Evaluate(limit=self.config.limit, data=self.config.data, seed=self.inputs.seed)
        key = score_key(name, evaluate, self.inputs.dtype, self.inputs.chat_template)
        model = functools.cache(load_model)

        def one(capability: Capability) -> TaskItems:
            file = self.output / "scores" / _slug(name) / f"{_slug(capability.name)}.json"
            own = {**key, "task": capability.name, "rows": list(capability.item_ids)}
            return stored_or_scored(file, own, lambda: score(model(), capability, evaluate))

        return tuple(one(capability) for capability in self.capabilities)


def _student_first(
    config: History, inputs: HistoryInputs, output: Path, groups: tuple[str | None, ...]
) -> tuple[_Scorer, tuple[TaskItems, ...]]:
    """The student lays out the rows that all are scored on, is scored itself, and leaves memory."""
    student = load(inputs.student, dtype=inputs.dtype, chat_template=inputs.chat_template)
    known = capabilities(config, groups, student, inputs.seed)
    scorer = _Scorer(config, inputs, output, known, student.tokenizer.get_vocab())
    items = scorer.items(inputs.student, lambda: student)
    _check_enough(items)
    return scorer, items


def _check_enough(items: Sequence[TaskItems]) -> None:
    for task in items:
        if len(task.scores) < MIN_ITEMS:
            raise ConfigError(
                f"{task.task}: {len(task.scores)} item to choose a teacher by; raise `limit` to 100 or so"
            )


def _result(
    scorer: _Scorer, base: tuple[TaskItems, ...], scored: dict[str, tuple[TaskItems, ...]], seconds: float
) -> HistoryResult:
    """The student stands at the end of its history, or where it was found in it; it does not compete with itself."""
    inputs = scorer.inputs
    others = {name: items for name, items in scored.items() if items is not base}
    if not others:
        raise DataError(f"{inputs.folder}: no checkpoint but the student itself could be scored; give its history")
    choices = choose(base, others, inputs.seed)
    chosen, terms = assign(choices, scorer.capabilities, scorer.config.prompts)
    shown = scored if len(others) < len(scored) else {**scored, inputs.student: base}
    checkpoints = tuple(
        CheckpointScores(checkpoint=name, order=order, scores=compared(items, base, inputs.seed))
        for order, (name, items) in enumerate(shown.items())
    )
    return HistoryResult(student=inputs.student, checkpoints=checkpoints, chosen=chosen, terms=terms, seconds=seconds)


def _slug(name: str) -> str:
    """A file name for any name: its end, for people, and a digest, which tells it from all others."""
    letters = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-SLUG_LETTERS:].strip("_.")
    return f"{letters}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
