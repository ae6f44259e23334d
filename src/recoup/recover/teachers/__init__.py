"""Teachers of a repair: checkpoints, the student's moving average, the student as it was.

Which of a term's teachers stands where is decided once, here; the trainer sees `Teacher` and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from recoup.config import Teachers, Term
from recoup.models.load import LanguageModel, load
from recoup.models.logits import shared_vocabulary
from recoup.recover.teachers.base import Teacher
from recoup.recover.teachers.cached import Cached
from recoup.recover.teachers.ema import Average
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.teachers.start import Start

__all__ = ["Pupil", "Teacher", "after_step", "distinct", "load_state", "load_teachers", "state"]


@dataclass(frozen=True)
class Pupil:
    """The student as teachers need it: the model that trains, its compute copy (or itself), and what of it trains."""

    student: LanguageModel
    twin: LanguageModel
    trained: tuple[str, ...]  # parameter names


def load_teachers(
    terms: Sequence[Term],
    names: Sequence[str],
    settings: Teachers,
    pupil: Pupil,
    chat_template: str | Path | None,
    cache_folder: Path,
) -> tuple[Teacher, ...]:
    """One teacher per term; a name that stands twice is loaded once.

    To be called before a checkpoint of the run is laid into the student: `start` and `ema` begin at its present weights.
    `settings.cache` serves terms whose completions are a file's and whose teacher does not move; all others meet new
    tokens, or a new teacher, at every step. `settings.hold` is for checkpoints: `start` and `ema` hold no model.

    Args:
        terms: of the objective.
        names: who teaches each term: `ema`, `start`, or what `models.load` understands.
        settings: how teachers are held.
        pupil: the student.
        chat_template: as for `models.load`.
        cache_folder: where scores are kept.

    Raises:
        SourceError: a teacher cannot be loaded, or its tokenizer is not the student's.
        StructureError: a teacher has no blocks that can be found, for `hold: int8` or `offload`.
    """
    found = {name: _teacher(name, settings, pupil, chat_template) for name in dict.fromkeys(names)}
    return tuple(
        _perhaps_cached(found[name], term, settings, cache_folder) for term, name in zip(terms, names, strict=True)
    )


def distinct(teachers: Sequence[Teacher]) -> tuple[Teacher, ...]:
    """Every teacher once, caches taken off: what moves after a step, is saved, and costs memory."""
    inner = [teacher.inner if isinstance(teacher, Cached) else teacher for teacher in teachers]
    return tuple({id(teacher): teacher for teacher in inner}.values())


def after_step(teachers: Sequence[Teacher], step: int) -> None:
    """Let every teacher move once, after the optimizer step of this number, counted from 0."""
    for teacher in distinct(teachers):
        teacher.after_step(step)


def state(teachers: Sequence[Teacher]) -> dict[str, Tensor]:
    """What a resumed run needs of all teachers."""
    return {f"{t.name}:{key}": tensor for t in distinct(teachers) for key, tensor in t.state().items()}


def load_state(teachers: Sequence[Teacher], saved: Mapping[str, Tensor]) -> None:
    """Go on from a `state`."""
    for teacher in distinct(teachers):
        prefix = f"{teacher.name}:"
        teacher.load_state({k.removeprefix(prefix): t for k, t in saved.items() if k.startswith(prefix)})


def _teacher(name: str, settings: Teachers, pupil: Pupil, chat_template: str | Path | None) -> Teacher:
    if name == "start":
        return Start(pupil.twin, pupil.trained)
    if name == "ema":
        return Average(pupil.student, pupil.twin, pupil.trained, settings.ema_rate, settings.ema_every)
    checkpoint = load(name, dtype=pupil.twin.model.dtype, chat_template=chat_template)
    return Frozen(checkpoint, shared_vocabulary(pupil.student, checkpoint), settings.hold)


def _perhaps_cached(teacher: Teacher, term: Term, settings: Teachers, folder: Path) -> Teacher:
    if settings.cache == "none" or term.completions != "file" or teacher.identity is None:
        return teacher
    return Cached(teacher, folder, settings.cache, settings.top_k)
