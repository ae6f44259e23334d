"""A structure: what a student must keep, per weight, and how it lies on disk.

`structure.json` names each constrained weight, its grid and mask and a hash of their tensors; `structure.safetensors`
beside it holds the scales, zero points and masks. A weight may have a grid, a mask, or both. A changed shape (removed
feed-forward neurons) is a note: the shapes of the tensors enforce it.

Weights are constrained output × input; a `Conv1D` stores them transposed and `view_OI` turns them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recoup.errors import StructureError
from recoup.run_folder import write_json
from recoup.structure.grids import GRIDS, Grid, Parameters
from recoup.structure.masks import pack, unpack

SCHEMA_VERSION = 1
JSON_NAME, TENSORS_NAME = "structure.json", "structure.safetensors"


@dataclass(frozen=True)
class Constraint:
    """What one weight must keep."""

    grid: Grid | None = None
    parameters: Parameters = field(default_factory=dict)  # of the grid, as last fitted
    mask_OI: Tensor | None = None  # bool, true where a weight may live
    transposed: bool = False
    refit: bool = True  # whether scales follow the weight as it trains; if not, they stay as they were found
    pattern: str | None = None  # of the mask, such as `2:4`

    def view_OI(self, weight: Tensor) -> Tensor:
        """The weight as output × input."""
        return weight.T if self.transposed else weight

    def to(self, device: torch.device) -> "Constraint":
        """The same constraint with its tensors on `device`."""
        moved = {key: value.to(device) for key, value in self.parameters.items()}
        return replace(self, parameters=moved, mask_OI=None if self.mask_OI is None else self.mask_OI.to(device))

    def fitted(self, weight: Tensor) -> "Constraint":
        """The same constraint with the grid's scales fitted to `weight`."""
        if self.grid is None:
            return self
        return replace(self, parameters=self.grid.fit(self._masked(self.view_OI(weight))))

    def project(self, weight: Tensor) -> Tensor:
        """The nearest weight that keeps the structure, laid out as `weight` is."""
        projected_OI = self._masked(self.view_OI(weight))
        if self.grid is not None:
            projected_OI = self._masked(self.grid.project(projected_OI, self.parameters))
        return self.view_OI(projected_OI)

    def _masked(self, weight_OI: Tensor) -> Tensor:
        return weight_OI if self.mask_OI is None else torch.where(self.mask_OI, weight_OI, 0.0)

    def describe(self) -> str:
        """A few words for people."""
        parts = [self.grid.describe()] if self.grid else []
        if self.mask_OI is not None:
            zeros = f"{1 - self.mask_OI.float().mean().item():.1%} zeros"
            parts.append(f"{zeros} ({self.pattern})" if self.pattern else zeros)
        return " with ".join(parts)


@dataclass(frozen=True)
class Structure:
    """What a model must keep: a constraint per weight name, and notes on changed shapes."""

    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    shapes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # config field → {"before": …, "after": …}

    def describe(self) -> str:
        """One line for people."""
        kinds: dict[str, int] = {}
        for constraint in self.constraints.values():
            kinds[constraint.describe()] = kinds.get(constraint.describe(), 0) + 1
        shapes = [f"{name} {change['before']} → {change['after']}" for name, change in self.shapes.items()]
        counted = [f"{kind}: {count} weight matrices" for kind, count in kinds.items()]
        return "; ".join([*counted, *shapes]) or "no structure: every weight is free"


def write_structure(structure: Structure, folder: Path) -> None:
    """Write `structure.json` and its tensors into `folder`; nothing for a structure that constrains nothing."""
    if not structure.constraints and not structure.shapes:
        return
    tensors = {f"{name}:{key}": t for name, c in structure.constraints.items() for key, t in _tensors(c).items()}
    if tensors:
        save_file(tensors, folder / TENSORS_NAME)
    weights = {name: _describe_weight(constraint) for name, constraint in structure.constraints.items()}
    shapes = {name: dict(change) for name, change in structure.shapes.items()}
    write_json(folder / JSON_NAME, {"schema_version": SCHEMA_VERSION, "weights": weights, "shapes": shapes})


def read_structure(folder: Path) -> Structure:
    """The structure a model folder declares; an empty one if it declares none.

    Raises:
        StructureError: the files are malformed, do not fit each other, or are from a newer recoup.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        return Structure()
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
        if declared["schema_version"] > SCHEMA_VERSION:
            raise StructureError(f"{path}: written by a newer recoup; upgrade recoup")
        stored = load_file(folder / TENSORS_NAME) if declared["weights"] else {}
        constraints = {name: _read_weight(name, entry, stored) for name, entry in declared["weights"].items()}
        return Structure(constraints, declared["shapes"])
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, SafetensorError, FileNotFoundError) as error:
        raise StructureError(f"{path}: not a readable structure ({type(error).__name__}: {error})") from None


def _tensors(constraint: Constraint) -> dict[str, Tensor]:
    tensors = {key: value.contiguous().cpu() for key, value in constraint.parameters.items()}
    return tensors if constraint.mask_OI is None else {**tensors, "mask": pack(constraint.mask_OI)}


def _describe_weight(constraint: Constraint) -> dict[str, object]:
    grid = constraint.grid
    return {
        "grid": None if grid is None else {"format": grid.format, **grid.settings()},
        "mask_shape": None if constraint.mask_OI is None else list(constraint.mask_OI.shape),
        "transposed": constraint.transposed,
        "refit": constraint.refit,
        "pattern": constraint.pattern,
        "sha256": _hash(_tensors(constraint)),
    }


def _read_weight(name: str, entry: dict, stored: dict[str, Tensor]) -> Constraint:
    tensors = {key.rpartition(":")[2]: value for key, value in stored.items() if key.rpartition(":")[0] == name}
    if _hash(tensors) != entry["sha256"]:
        raise StructureError(
            f"{name}: scales or mask differ from the hash in {JSON_NAME}; the files do not belong together"
        )
    mask_OI = unpack(tensors.pop("mask"), tuple(entry["mask_shape"])) if entry["mask_shape"] else None
    settings = dict(entry["grid"] or {})
    grid = GRIDS[settings.pop("format")](**settings) if settings else None
    refit, pattern = entry.get("refit", True), entry.get("pattern")  # absent in what recoup 0.1 wrote
    return Constraint(grid, tensors, mask_OI, entry["transposed"], refit, pattern)


def _hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()
