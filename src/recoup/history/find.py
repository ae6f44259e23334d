"""The checkpoints of a history, oldest first: of a folder, of a run, or of a list.

- A run folder of recoup: the model it began with, the checkpoint of each injury in the config's order, the repaired one.
- Any other folder: its subfolders that are models (or stage folders, whose model is in `checkpoint/`), and last the folder
  itself if it is one, as the `Trainer` of transformers leaves it. They are ordered by the number that their names end with
  (`checkpoint-500`, `step_20`) if all have one, else by when their weights were written. A copy may have lost those times:
  then give a list.
- A text file: one model a line in any form that `models.source` understands, in the order of the lines.

Nothing is loaded, and nothing is left out without a reason: pickles, which recoup never loads, weights that were not written
to their end, and folders without a tokenizer are each named.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from recoup.errors import DataError, SourceError
from recoup.models.source import resolve
from recoup.run_folder import RunFolder, user_path
from recoup.structure.spec import TENSORS_NAME

CONFIGS = ("config.json", "adapter_config.json")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "model*.pt", "consolidated*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
STAGE_MODEL = "checkpoint"  # where a stage folder keeps its model
LAST_NUMBER = re.compile(r"(\d+)$")
NAMED_REASONS = 3  # reasons that an error repeats


@dataclass(frozen=True)
class Found:
    """The checkpoints as `models.load` takes them, oldest first, and a line for each folder that was left out."""

    checkpoints: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def find_checkpoints(where: Path, last: int | None = None) -> Found:
    """Find the checkpoints of a history.

    Args:
        where: a folder, a run folder, or a text file; `~` and `$VARIABLES` are expanded.
        last: only the newest so many; all when null.

    Raises:
        DataError: there is nothing there, it cannot be read, or it holds no checkpoint that can be loaded.
    """
    path = user_path(str(where))
    try:
        found = _listed(path) if path.is_file() else _in_folder(path)
    except OSError as error:
        raise DataError(
            f"{where}: cannot be read ({error.strerror or error}); check that it is yours to read"
        ) from None
    if not found.checkpoints:
        reasons = (
            "; ".join(found.left_out[:NAMED_REASONS]) or "it has no subfolders with config.json or adapter_config.json"
        )
        raise DataError(f"{where}: holds no checkpoint that can be loaded ({reasons}); give a folder of checkpoints")
    return Found(found.checkpoints[-last:] if last else found.checkpoints, found.left_out)


def problem(folder: Path) -> str | None:
    """Why the model in `folder` cannot be loaded, as far as its files tell without being read; null if they tell nothing."""
    if not any((folder / name).is_file() for name in CONFIGS):
        return "it has neither config.json nor adapter_config.json"
    adapter = (folder / "adapter_config.json").is_file()
    pattern = "adapter_model*.safetensors" if adapter else "*.safetensors"
    weights = [file for file in sorted(folder.glob(pattern)) if file.name != TENSORS_NAME]
    if not weights and _any_of(folder, PICKLES):
        return "its weights are pickles, which recoup does not load; convert them with save_pretrained"
    if not weights:
        return "it holds no .safetensors weights"
    if not _any_of(folder, TOKENIZER_FILES):
        return "it has no tokenizer; save the model's tokenizer into it"
    return _unfinished(folder, weights)


def _in_folder(folder: Path) -> Found:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder or file; give a folder of checkpoints, or a text file with a model a line"
        )
    if RunFolder(folder).config.is_file() and any((folder / stage).is_dir() for stage in ("degrade", "recover")):
        return _of_run(RunFolder(folder))
    children = [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    models = {child: model for child in children if (model := _model_in(child)) is not None}
    ordered = [models[child] for child in _oldest_first(models)]
    return _sorted_out([*ordered, folder] if _model_in(folder) == folder else ordered)


def _of_run(run: RunFolder) -> Found:
    """The states of a run, as far as it has come."""
    try:
        tree = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        named = [str(tree[name]) for name in ("model", "student") if tree.get(name)]
        steps = [str(step["type"]) for step in tree.get("degrade") or ()]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        raise DataError(
            f"{run.config}: not the config of a run; restore it, or give a list of models instead"
        ) from None
    checkpoints, left_out = [], []
    for name in named:
        try:
            resolve(name)
        except SourceError as error:
            left_out.append(_line(name, str(error)))
        else:
            checkpoints.append(name)
    made = _sorted_out(
        folder / STAGE_MODEL for folder in (*map(run.degrade, steps), run.recover) if (folder / STAGE_MODEL).is_dir()
    )
    return Found((*checkpoints, *made.checkpoints), (*left_out, *made.left_out))


def _listed(file: Path) -> Found:
    """A model a line; a line may name a path beside the file. Every one must be there: a list is meant as it is."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"{file}: not a text file; give a folder of checkpoints, or a text file with a model a line"
        ) from None
    names = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        beside = file.parent / name
        try:
            source = resolve(str(beside) if beside.exists() else name)
        except SourceError as error:
            raise DataError(f"{file}, line {number}: {error}") from None
        path = Path(source.location)
        if path.is_dir() and (why := problem(path)) is not None:
            raise DataError(f"{file}, line {number}: {name} cannot be loaded: {why}")
        names.append(source.name)
    return Found(tuple(names))


def _model_in(folder: Path) -> Path | None:
    """The folder or its `checkpoint/`, whichever has what looks like a model's files."""
    looks = (*CONFIGS, *PICKLES, "*.safetensors")
    return next((path for path in (folder, folder / STAGE_MODEL) if _any_of(path, looks)), None)


def _sorted_out(folders: Iterable[Path]) -> Found:
    checkpoints, left_out = [], []
    for folder in folders:
        why = problem(folder)
        if why is None:
            checkpoints.append(str(folder))
        else:
            left_out.append(_line(str(folder), why))
    return Found(tuple(checkpoints), tuple(left_out))


def _oldest_first(models: dict[Path, Path]) -> list[Path]:
    numbers = {child: LAST_NUMBER.search(child.name) for child in models}
    if all(numbers.values()):
        return sorted(models, key=lambda child: (int(found[1]) if (found := numbers[child]) else 0, child.name))
    return sorted(models, key=lambda child: (_written(models[child]), child.name))


def _written(folder: Path) -> int:
    """When the newest weights in `folder` were written, nanoseconds."""
    return max((file.stat().st_mtime_ns for file in folder.glob("*.safetensors")), default=folder.stat().st_mtime_ns)


def _unfinished(folder: Path, weights: Iterable[Path]) -> str | None:
    """A training that was killed while it saved leaves files without their end, or an index of files that are not there."""
    for file in weights:
        try:
            with safe_open(file, framework="np"):
                pass  # opening compares the header with the file's length
        except (SafetensorError, OSError) as error:
            return f"{file.name} was not written to its end ({error})"
    for index in folder.glob("*.safetensors.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            return f"{index.name} cannot be read"
        missing = sorted(part for part in parts if not (folder / part).is_file())
        if missing:
            return f"{len(missing)} of {len(parts)} weight files are missing ({missing[0]})"
    return None


def _any_of(folder: Path, patterns: Iterable[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _line(name: str, why: str) -> str:
    return f"{name} left out: {why}"
