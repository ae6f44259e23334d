"""What goes into a repair and what comes out, and what repairs ask of a student before they start."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recoup.config import FreeRepair
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts
from recoup.models.save import save
from recoup.structure.spec import Structure


@dataclass(frozen=True)
class Damaged:
    """What is repaired; both models in float32, so that a repaired one keeps its structure bit for bit."""

    teacher: LanguageModel  # the earlier checkpoint, which the student's base is
    student: LanguageModel
    rollouts: Rollouts  # the teacher's completions of prompts that no candidate is scored on


@dataclass(frozen=True)
class Candidate:
    """A repaired model."""

    repair: FreeRepair
    settings: dict[str, Any]  # such as {"share": 0.4}
    model: LanguageModel  # in memory alone, with the structure it keeps
    note: str | None = None  # what it gives up, or what it could not do


def keep(candidate: Candidate, folder: Path) -> Path:
    """Save the repaired model as an ordinary folder and return it.

    Raises:
        StructureError: a weight left its grid or mask; nothing is written then.
        RunFolderError: the disk is full or the folder is read-only.
    """
    save(candidate.model, candidate.model.structure, folder)
    return folder


def copied(model: LanguageModel, structure: Structure | None = None) -> LanguageModel:
    """The same model with weights of its own, which may be moved; with another structure where one is given."""
    return replace(model, model=deepcopy(model.model), structure=model.structure if structure is None else structure)


@torch.no_grad()
def rebased(damaged: Damaged, kept: Collection[str] = ()) -> LanguageModel:
    """A copy of the student with the teacher's weights, but for those named in `kept`; shapes must agree."""
    model, base = copied(damaged.student), weights(damaged.teacher)
    for name, weight in weights(model).items():
        if name not in kept:
            weight.copy_(base[name])
    return model


def weights(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters by name, tied ones once."""
    return {name: parameter.data for name, parameter in model.model.named_parameters()}


def other_shapes(damaged: Damaged) -> str | None:
    """The first weight by which student and teacher differ in name or shape, as a reason; null: there is none."""
    student, teacher = _shapes(weights(damaged.student)), _shapes(weights(damaged.teacher))
    differing = [name for name in sorted(student.keys() | teacher.keys()) if student.get(name) != teacher.get(name)]
    return (
        f"the student's weights have other names or shapes than the teacher's (first: {differing[0]})"
        if differing
        else None
    )


def no_way_back(damaged: Damaged) -> str | None:
    """Why the student cannot be moved towards the teacher's weights; null: it can."""
    if damaged.student.structure != Structure():
        return (
            f"the student is compressed ({damaged.student.structure.describe()}), and weights moved towards the teacher's "
            "would leave that structure"
        )
    if reason := other_shapes(damaged):
        return reason
    teacher = weights(damaged.teacher)
    same = all(torch.equal(weight, teacher[name]) for name, weight in weights(damaged.student).items())
    return "the student's weights are the teacher's own" if same else None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
