"""Folders that look like checkpoints, and scores made by hand."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from recoup.results import TaskItems


def made(folder: Path, age: int = 0) -> Path:
    """What a model folder needs to be taken for one; `age` in seconds, the larger the older."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    weights = folder / "model.safetensors"
    save_file({"w": np.zeros(8, dtype=np.float32)}, weights)
    os.utime(weights, ns=(0, (1_000_000 - age) * 10**9))
    return folder


@pytest.fixture
def checkpoint() -> Callable[..., Path]:
    return made


@pytest.fixture
def items() -> Callable[..., TaskItems]:
    def make(*scores: float, task: str = "t", metric: str = "acc") -> TaskItems:
        return TaskItems(task=task, metric=metric, item_ids=tuple(map(str, range(len(scores)))), scores=scores)

    return make
