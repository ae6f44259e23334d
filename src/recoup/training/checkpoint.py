"""What a stopped training run continues from: weights and what trains beside them, AdamW's moments, the step.

Safetensors and JSON, no pickles. Random choices are functions of (seed, step), so no generator state is kept, and the
continued run equals the unstopped one.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recoup.run_folder import atomic_folder
from recoup.structure.guard import Guard
from recoup.training.optimizer import Stepper

WEIGHTS, OPTIMIZER, POSITION = "weights.safetensors", "optimizer.safetensors", "position.json"


def save_checkpoint(
    folder: Path, model: nn.Module, guard: Guard, stepper: Stepper, position: dict[str, object]
) -> None:
    """Replace the checkpoint at `folder`, all or nothing; `position` says where the run stands.

    Raises:
        RunFolderError: the folder cannot be written; the last checkpoint is untouched.
    """
    with atomic_folder(folder) as temporary:
        save_file(_contiguous({**dict(model.named_parameters()), **guard.state()}), temporary / WEIGHTS)
        save_file(_contiguous(stepper.state()), temporary / OPTIMIZER)
        (temporary / POSITION).write_text(json.dumps(position), encoding="utf-8")


def load_checkpoint(folder: Path, model: nn.Module, guard: Guard, stepper: Stepper) -> dict[str, object] | None:
    """Lay the checkpoint at `folder` into model, guard and optimizer; returns its position, null if there is none."""
    if not (folder / POSITION).is_file():
        return None
    weights = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    guard.load_state(weights)
    stepper.load_state(load_file(folder / OPTIMIZER))
    position: dict[str, object] = json.loads((folder / POSITION).read_text(encoding="utf-8"))
    return position


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
