"""Every path of a run, atomic writes, and which stages are done. A run on disk mirrors the package.

A stage is done when its `result.json` is there: it is written last, by rename, so a stopped run never looks finished.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from recoup.errors import DataError, RunFolderError


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Command, commit, versions, device, model revisions, seeds."""
        return self.root / "provenance.json"

    def degrade(self, step: str) -> Path:
        """Folder of one injury, by its type."""
        return self.root / "degrade" / step

    def diagnose(self, state: str) -> Path:
        """Folder of a diagnosis: `before` or `after` the repair."""
        return self.root / "diagnose" / state

    @property
    def recover(self) -> Path:
        """Folder of the repair."""
        return self.root / "recover"

    @property
    def evaluate(self) -> Path:
        """Folder of the evaluation."""
        return self.root / "evaluate"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.root / "report" / "index.html"


def result_path(stage: Path) -> Path:
    """Where a stage keeps its result; its presence means the stage is done."""
    return stage / "result.json"


def make_folder(path: Path) -> Path:
    """Create a folder a stage writes to.

    Raises:
        RunFolderError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{path}: cannot create this folder ({error.strerror}); choose another with --output"
        ) from None
    if not os.access(path, os.W_OK):
        raise RunFolderError(f"{path}: this folder is read-only; choose another with --output")
    return path


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder until the block ends, however it ends.

    Raises:
        RunFolderError: another process is in it, or the folder cannot be written.
    """
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise RunFolderError(
            f"{folder}: another recoup is at work here; wait for it or stop it, or choose another --output"
        ) from None


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it only if the block succeeds.

    Raises:
        RunFolderError: the disk is full or the folder is read-only; what stood at `path` is untouched.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write ({error.strerror or error}); nothing was overwritten") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place only if the block succeeds.

    Raises:
        RunFolderError: the disk is full or the folder is read-only; what stood at `path` is untouched.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        _replace_folder(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own words
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"{path}: cannot write ({reason}); nothing was overwritten") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(path: Path) -> None:
    """Undo what a killed `atomic_folder` left: a folder that stepped aside comes back, half-written ones go."""
    for aside in path.parent.glob(f".{path.name}.old.*"):
        if (aside / path.name).exists() and not path.exists():
            (aside / path.name).rename(path)
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left)


def _replace_folder(new: Path, old: Path) -> None:
    """Rename cannot replace a folder that is not empty, so the old one steps aside first."""
    if not old.exists():
        new.rename(old)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent))
    old.rename(aside / old.name)
    new.rename(old)
    shutil.rmtree(aside)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        RunFolderError: as for `atomic_file`.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented for people.

    Raises:
        RunFolderError: as for `atomic_file`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def user_path(text: str) -> Path:
    """A path as a user writes it: `~` and `$VARIABLES` are expanded.

    Raises:
        DataError: a variable is not set.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise DataError(
            f"{text}: an environment variable in this path is not set; set it to your data folder, or give a path"
        )
    return Path(expanded).expanduser()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: the file is missing, or a line is not a JSON object; the line's number is given.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            rows.append(row)
    return rows
