"""A folder of compressed safetensors, tensor by tensor, and what a reader makes of one compressed matrix.

Shapes: O output width, I input width, G groups along the input.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from recoup.errors import SourceError
from recoup.structure.grids import Grid, IntegerGrid, Parameters
from recoup.structure.grids.base import grouped

# where a checkpoint says how it is compressed: config.json (the second name is an older one), or GPTQ's own file
CONFIG_FIELDS = ("quantization_config", "compression_config")
GPTQ_CONFIG = "quantize_config.json"


@dataclass(frozen=True)
class Matrix:
    """One matrix as it was read: its float32 weight, and the grid it is on; `free` says why it has none."""

    weight_OI: Tensor
    grid: Grid | None = None
    parameters: Parameters = field(default_factory=dict)
    free: str | None = None


class Checkpoint:
    """The tensors of a folder's safetensors files, by name, read when asked for.

    Raises:
        safetensors.SafetensorError: a file is truncated or no safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self._files.update(dict.fromkeys(file.keys(), file))

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._files)

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """How the checkpoint says it is compressed."""
        return quantization_config(self.folder) or {}

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._files

    def get(self, name: str) -> Tensor:
        """A tensor.

        Raises:
            SourceError: there is none.
        """
        if name not in self._files:
            raise SourceError(
                f"{self.folder}: lacks the tensor {name}; the checkpoint is incomplete, download it again"
            )
        return self._files[name].get_tensor(name)

    def refuse(self, what: str, fix: str) -> SourceError:
        """The error for a checkpoint that cannot be read: what it holds, and what to do."""
        return SourceError(f"{self.folder}: {what}; {fix}")


@dataclass(frozen=True)
class Reader:
    """How one tool stores a matrix.

    Attributes:
        label: the tool's name, for people.
        markers: endings of a tensor's name that say that its module is compressed.
        parts: endings of all the tensors that make up, or describe, such a module's weight.
        read: gives the matrix of a module, by the module's name.
        serving: endings of tensors that only a server uses (scales of activations); they are left out.
    """

    label: str
    markers: tuple[str, ...]
    parts: tuple[str, ...]
    read: Callable[[Checkpoint, str], Matrix]
    serving: tuple[str, ...] = ()

    def modules(self, checkpoint: Checkpoint) -> list[str]:
        """Names of the compressed modules."""
        return sorted({n.removesuffix(m) for n in checkpoint.names for m in self.markers if n.endswith(m)})


def quantization_config(folder: Path) -> dict[str, Any] | None:
    """How a model folder says it is compressed; null for an ordinary one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in CONFIG_FIELDS:
        if config.get(name):
            return dict(config[name])
    if (folder / GPTQ_CONFIG).is_file():
        return {"quant_method": "gptq", **json.loads((folder / GPTQ_CONFIG).read_text(encoding="utf-8"))}
    return None


def integer_matrix(codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor, bits: int) -> Matrix:
    """The matrix scale · (code − zero), in float32, with codes from 0 to 2^bits − 1 and any whole zero point.

    Where every zero point is in the middle, the grid is the symmetric one. A scale of 0 makes zeros whatever the codes; such a
    group gets the scale 1, which can be divided by.
    """
    scale_OG, zero_OG = scale_OG.float(), zero_OG.float()
    groups = scale_OG.shape[1]
    size = None if groups == 1 else codes_OI.shape[1] // groups
    weight_OGS = grouped(codes_OI.float(), size) - zero_OG[..., None]
    weight_OI = (weight_OGS * scale_OG[..., None]).flatten(1).add_(0.0)  # −0 becomes 0
    parameters = {"scale": scale_OG.where(scale_OG != 0, 1.0).contiguous()}
    symmetric = bool((zero_OG == 2 ** (bits - 1)).all())
    if not symmetric:
        parameters["zero"] = zero_OG.contiguous()
    return Matrix(weight_OI, IntegerGrid(bits, size, symmetric, full_range=True), parameters)


def permuted_matrix(codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor, group_I: Tensor) -> Matrix:
    """As `integer_matrix`, where the groups are not runs of inputs but any sets of them: no grid of ours has those."""
    columns_I = group_I.long()
    weight_OI = (codes_OI.float() - zero_OG.float()[:, columns_I]) * scale_OG.float()[:, columns_I]
    return Matrix(weight_OI.add_(0.0), free="groups in activation order, which no grid here has")


def in_order(group_I: Tensor, groups: int) -> bool:
    """Whether the inputs' groups are runs of equal length."""
    size = len(group_I) // groups
    return torch.equal(group_I.long(), torch.arange(len(group_I)) // max(1, size))
