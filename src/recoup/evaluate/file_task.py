"""What tasks over a file of the data folder share: their description, and where the file is."""

from dataclasses import dataclass
from pathlib import Path

from recoup.errors import DataError
from recoup.run_folder import user_path


@dataclass(frozen=True)
class FileTask:
    """One task over one file. Items get named scores; the one named `metric` is the item's score, higher is better."""

    name: str
    file: str  # under the data folder
    metric: str
    about: str


def data_file(task: FileTask, data: str | None) -> Path:
    """Where the rows of `task` are.

    Raises:
        DataError: no data folder is given, or it lacks the file.
    """
    if data is None:
        raise DataError(f"task {task.name!r} needs `evaluate.data`: the folder that holds {task.file}")
    path = user_path(data) / task.file
    if not path.is_file():
        raise DataError(f"{path}: no such file; `evaluate.data` is the folder that holds {task.file}")
    return path
