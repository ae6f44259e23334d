"""Progress: how a stage tells how far it is, and what a terminal shows of it.

A stage calls a `Progress` with a label, how many are done and how many there are. A label is "what" or "what: how it goes"; it
may have a second line with figures, which changes from call to call (`recover/live.py`). What stays the same up to the colon
is one bar.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.text import Text

Progress = Callable[[str, int, int], None]  # label, done, total

SPEED_SECONDS = (
    600.0  # the time left is estimated from these last seconds: a repair's steps may take half a minute each
)
PLAIN_SECONDS = 10.0  # at most one plain line in this time


def silent(_label: str, _done: int, _total: int) -> None:
    """Nobody watches."""


@contextmanager
def terminal(console: Console) -> Iterator[Progress]:
    """Yield a `Progress` that shows a bar for each thing that goes on, and the figures of the latest below them.

    Where `console` is a file or a pipe there are plain lines instead (`plain`). Labels are shown as they are: markup in them
    means nothing.
    """
    if not console.is_terminal:
        yield plain(console)
        return
    with _BarsAndFigures(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=SPEED_SECONDS,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            headline, _, bars.figures = label.partition("\n")
            what = headline.partition(":")[0]
            if what not in tasks:
                tasks[what] = bars.add_task(headline, total=total)
            bars.update(tasks[what], description=headline, completed=done, total=total)

        yield show


def plain(console: Console, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A `Progress` that prints a line when a thing begins or ends, and now and then between, with the time left."""
    began: dict[str, tuple[float, int]] = {}  # by thing: when it was first told of, and how much was done then
    printed: dict[str, float] = {}

    def show(label: str, done: int, total: int) -> None:
        what, now = label.partition(":")[0], clock()
        start, first = began.setdefault(what, (now, done))
        if what in printed and done != total and now - printed[what] < PLAIN_SECONDS:
            return
        printed[what] = now
        left = f", {_minutes((now - start) / (done - first) * (total - done))} left" if first < done < total else ""
        words = " | ".join([*label.split("\n"), f"{done}/{total}{left}"])
        console.print(words, markup=False, highlight=False, soft_wrap=True)
        if done == total:  # the same thing may begin again, such as a second diagnosis
            del began[what], printed[what]

    return show


class _BarsAndFigures(Bars):
    """Bars, and a line of figures under them that may be wider than their first column."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(f"  {self.figures}", style="dim")


def _minutes(seconds: float) -> str:
    """`0:09`, `12:30` or `2:05:00`, as the bars write it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
