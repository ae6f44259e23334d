"""What a stopped training run continues from: weights and what trains beside them, the optimizer's state, where it stands.

Safetensors and JSON, no pickles. Random choices are functions of (seed, step), so no generator state is kept, and the
continued run equals the unstopped one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recoup.run_folder import atomic_folder
from recoup.structure.guard import Guard
from recoup.training.optimizer import Stepper

WEIGHTS, OPTIMIZER, POSITION = "weights.safetensors", "optimizer.safetensors", "position.json"


def save_checkpoint(
    folder: Path,
    trained: tuple[nn.Module, Guard, Stepper],
    position: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Replace the checkpoint at `folder`, all or nothing.

    Args:
        folder: where it lies.
        trained: the model, its guard and its optimizer.
        position: where the run stands, for JSON.
        extra: other tensors, a file a group.

    Raises:
        RunFolderError: the folder cannot be written; the last checkpoint is untouched.
    """
    model, guard, stepper = trained
    with atomic_folder(folder) as temporary:
        save_file(_contiguous({**dict(model.named_parameters()), **guard.state()}), temporary / WEIGHTS)
        save_file(_contiguous(stepper.state()), temporary / OPTIMIZER)
        for name, tensors in extra.items():
            save_file(_contiguous(tensors), temporary / f"{name}.safetensors")
        whole = {"groups": sorted(extra), **position}
        (temporary / POSITION).write_text(json.dumps(whole), encoding="utf-8")


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint at `folder`."""
    return (folder / POSITION).is_file()


def load_checkpoint(
    folder: Path, model: nn.Module, guard: Guard, stepper: Stepper
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """Lay the checkpoint at `folder` into model, guard and optimizer.

    Returns:
        Its position and its other tensors; null if there is none.
    """
    if not has_checkpoint(folder):
        return None
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    guard.load_state(weights)
    stepper.load_state(load_file(folder / OPTIMIZER))
    position: dict[str, Any] = json.loads((folder / POSITION).read_text(encoding="utf-8"))
    return position, {name: load_file(folder / f"{name}.safetensors") for name in position.pop("groups")}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
