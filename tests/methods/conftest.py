"""Prompts, a task with answers, a damaged student, and a run's settings for a repair of two steps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.config import Quantize
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.models.load import load
from recoup.models.save import save
from recoup.structure.spec import Structure

TASKS = {f"what comes after number {i}": f"it is {i + 1}" for i in range(24)}


@pytest.fixture(scope="session")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"please explain topic {i} in a few words" for i in range(40)))
    return path


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": a}) + "\n" for p, a in TASKS.items()))
    return path


@pytest.fixture(scope="session")
def quantized(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama on a 3-bit grid."""
    config, folder = Quantize(bits=3, group_size=16), tmp_path_factory.mktemp("quantized")
    return Path(degrade(config, DegradeInputs(str(tiny_models["llama"]), 0), folder).checkpoint)


@pytest.fixture(scope="session")
def tuned(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, a little moved: on no structure."""
    model, folder = load(str(tiny_models["llama"])), tmp_path_factory.mktemp("tuned")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.model.parameters():
        parameter.data += 0.03 * torch.randn(parameter.shape, generator=generator)
    save(model, Structure(), folder)
    return folder


def tree(method: str, prompts: Path, **settings: Any) -> dict[str, Any]:
    """A run in fp32, exact on a CPU; its two settings of `degrade` and `student` are for the test to give."""
    return {
        "name": "x", "method": method,
        "recover": {
            "terms": [{"prompts": str(prompts), "num_prompts": 8}],
            "steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0, "precision": "fp32",
            "rollout": {"max_tokens": 8}, "bootstrap": {"max_steps": 1, "overlap": 1.0},
        },
        **settings,
    }  # fmt: skip
