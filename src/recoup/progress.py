"""Progress: how a stage tells how far it is, and the bars a terminal shows of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
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

Progress = Callable[[str, int, int], None]  # label, done, total; a label is "what" or "what: how it goes"


def silent(_label: str, _done: int, _total: int) -> None:
    """Nobody watches."""


@contextmanager
def terminal(console: Console) -> Iterator[Progress]:
    """Yield a `Progress` that shows one bar for each thing that is going on, on `console`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(label: str, done: int, total: int) -> None:
            what = label.partition(":")[0]
            if what not in tasks:
                tasks[what] = bars.add_task(escape(label), total=total)
            bars.update(tasks[what], description=escape(label), completed=done, total=total)

        yield show
