"""Tiny checkpoints on grids, and records of a run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from recoup.export import readback
from recoup.models.layers import block_linears, is_transposed
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.structure.grids import Grid
from recoup.structure.spec import Constraint, Structure
from tests.conftest import save_tiny

Pick = Callable[[int], Grid | None]


@pytest.fixture(autouse=True)
def _short_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model needs fewer tokens to show a difference."""
    monkeypatch.setattr(readback, "TEXTS", readback.TEXTS[:3])
    monkeypatch.setattr(readback, "COMPLETION_TOKENS", 8)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose every linear layer has a multiple of 32 inputs."""
    return save_tiny("llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=64)


def on_grids(folder: Path, pick: Pick) -> LanguageModel:
    """The model with the grid `pick(i)` on its i-th linear layer, or none."""
    model, constraints = load(str(folder)), {}
    for index, (name, module) in enumerate(block_linears(model.model).items()):
        grid = pick(index)
        if grid is not None:
            transposed = is_transposed(module)
            weight = model.model.get_parameter(f"{name}.weight").data
            constraint = Constraint(grid, transposed=transposed).fitted(weight)
            weight.copy_(constraint.project(weight))
            constraints[f"{name}.weight"] = constraint
    return replace(model, structure=Structure(constraints))


def save_on_grids(folder: Path, pick: Pick, output: Path) -> Path:
    model = on_grids(folder, pick)
    save(model, model.structure, output)
    return output
