"""What a stopped training run continues from: weights and what trains beside them, the optimizer's state, where it stands.

Safetensors and JSON, no pickles. Random choices are functions of (seed, step), so no generator state is kept, and the
continued run equals the unstopped one. Rows that processes share out are gathered: what lies on disk does not tell how many
there were.
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
from recoup.structure.shards import fill, whole
from recoup.training.optimizer import Stepper
from recoup.training.processes import ALONE, Processes

WEIGHTS, OPTIMIZER, POSITION = "weights.safetensors", "optimizer.safetensors", "position.json"


def save_checkpoint(
    folder: Path,
    trained: tuple[nn.Module, Guard, Stepper],
    position: Mapping[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]],
    processes: Processes = ALONE,
) -> None:
    """Replace the checkpoint at `folder`, all or nothing. Every process calls this, and the first one writes.

    Args:
        folder: where it lies.
        trained: the model, its guard and its optimizer.
        position: where the run stands, for JSON.
        extra: other tensors, a file a group.
        processes: who takes part.

    Raises:
        RunFolderError: the folder cannot be written; the last checkpoint is untouched.
    """
    model, guard, stepper = trained
    weights = {**dict(model.named_parameters()), **guard.state()}
    named = {WEIGHTS: weights, OPTIMIZER: stepper.state(), **{f"{name}.safetensors": extra[name] for name in extra}}
    files = {name: _gathered(tensors, processes) for name, tensors in named.items()}
    if not processes.is_main:
        return
    with atomic_folder(folder) as temporary:
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
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
            fill(parameter, weights[name])
    guard.load_state(weights)
    stepper.load_state(load_file(folder / OPTIMIZER))
    position: dict[str, Any] = json.loads((folder / POSITION).read_text(encoding="utf-8"))
    return position, {name: load_file(folder / f"{name}.safetensors") for name in position.pop("groups")}


def _gathered(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """The whole tensors in main memory, one after the other; nothing in processes that write nothing."""
    found = {}
    for name, tensor in tensors.items():
        every = whole(tensor.detach())
        if processes.is_main:
            found[name] = every.contiguous().cpu()
    return found
