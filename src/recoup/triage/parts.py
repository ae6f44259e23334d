"""What is done once: parts of a triage lie in its folder, and a stopped one goes on with those that are missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from recoup.errors import DataError, RunFolderError
from recoup.run_folder import write_text

T = TypeVar("T")


def once(path: Path, kind: TypeAdapter[T], work: Callable[[], T]) -> T:
    """The value at `path`; worked out and written there, atomically, if it is not.

    Raises:
        DataError: what lies there is no such value.
        RunFolderError: it cannot be written.
    """
    if path.is_file():
        try:
            return kind.validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path}: not readable ({' '.join(str(error).split())[:200]}); remove it") from None
    value = work()
    write_text(path, kind.dump_json(value, indent=2).decode() + "\n")
    return value


def claim(folder: Path, asked: dict[str, Any]) -> None:
    """Write down what this folder is the triage of, the first time.

    Raises:
        RunFolderError: it holds another one.
    """
    path, text = folder / "asked.json", json.dumps(asked, indent=2, ensure_ascii=False) + "\n"
    if not path.is_file():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise RunFolderError(
            f"{folder}: holds the triage of other models or settings; choose another --output, or remove it"
        )
