"""What every task shares: which items are scored, how their progress is told, how many samples the report gets."""

import random
from collections.abc import Callable

Report = Callable[[int, int], None]  # items done, items in all: a `recoup.progress.Progress` of one task

NUM_SAMPLES = 8  # items kept with their text, for the report


def choose(total: int, limit: int | None, seed: int, task: str) -> list[int]:
    """Items to score, ascending: all, or `limit` drawn by the seed and the task's name, so every model gets the same."""
    if limit is None or limit >= total:
        return list(range(total))
    return sorted(random.Random(f"{seed} {task}").sample(range(total), limit))  # noqa: S311  no secret is drawn


def silent(done: int, total: int) -> None:
    """The report nobody listens to."""
    del done, total
