"""Scores on disk, one file per model and task, so that a stopped evaluation goes on where it stopped.

A file is used again only if everything that decides the scores is unchanged: model files (by name, size and time of
change), task, items, data, precision, chat template.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from recoup.config import Evaluate
from recoup.models.source import resolve
from recoup.results import TaskItems
from recoup.run_folder import write_json

FORMAT = 2  # of these files; raise it when a task's scores change
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja")


def fingerprint(model: str) -> list[Any]:
    """What tells a model from any other, cheaply: where it is, and its files' names, sizes and times of change.

    Raises:
        SourceError: there is no such model.
    """
    source = resolve(model)
    path = Path(source.location)
    if source.kind == "hub":
        return [source.location, source.revision]
    files = [path] if path.is_file() else sorted(file for pattern in MODEL_FILES for file in path.glob(pattern))
    return [str(path.resolve()), [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]]


def score_key(model: str, config: Evaluate, dtype: torch.dtype, chat_template: str | Path | None) -> dict[str, Any]:
    """Everything but the task that decides a model's scores, as JSON values."""
    return {
        "format": FORMAT,
        "model": fingerprint(model),
        "limit": config.limit,
        "limits": config.limits,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "data": config.data,
        "dtype": str(dtype),
        "chat_template": None if chat_template is None else str(chat_template),
    }


def stored_or_scored(file: Path, key: dict[str, Any], score: Callable[[], TaskItems]) -> TaskItems:
    """What `file` holds if it was written under the same key, else what `score` gives, which is then written to it.

    Raises:
        RunFolderError: the file cannot be written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] == key:
            return TaskItems.model_validate(content["items"])
    except (FileNotFoundError, KeyError, TypeError, ValueError, ValidationError):
        pass  # absent, or not one of ours: it is written anew
    items = score()
    write_json(file, {"key": key, "items": items.model_dump(mode="json")})
    return items
