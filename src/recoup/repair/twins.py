"""Which module of the teacher a student's module came from: by name, and by block where blocks were removed.

A student with as many blocks as its teacher has them in the same places. One with fewer keeps the order: its blocks are matched
with those of the teacher that lie nearest by one weight matrix, the smallest that all of them share, such that the sum of
distances is least. Blocks that were compressed as well are still far nearer to their own than to any other.

Shapes: L blocks of the student, M of the teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.models.layers import blocks


def twins(student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, str]:
    """The teacher's module for each of the student's, by full name; no two share one. Those without one are left out."""
    own, theirs = blocks(student), blocks(teacher)
    numbers = matched(distances(own, theirs)) if len(own) < len(theirs) else list(range(len(own)))
    known = dict(teacher.named_modules())
    prefix, teacher_prefix = _name(student, own), _name(teacher, theirs)
    found = {}
    for name in dict(student.named_modules()):
        if name.startswith(f"{prefix}."):
            index, dot, rest = name.removeprefix(f"{prefix}.").partition(".")
            twin = f"{teacher_prefix}.{numbers[int(index)]}{dot}{rest}"
        else:
            twin = name
        if twin in known:
            found[name] = twin
    return found


def matched(distance_LM: Sequence[Sequence[float]]) -> list[int]:
    """For each of L blocks one of M ≥ L, in increasing order, such that the sum of distances is least.

    By dynamic programming: best[l][m] is the least sum for the first l blocks among the first m, so either block m is skipped,
    or it is the partner of block l.
    """
    num_own, num_theirs = len(distance_LM), len(distance_LM[0])
    best = [[0.0] * (num_theirs + 1)] + [[float("inf")] * (num_theirs + 1) for _ in range(num_own)]
    for own in range(1, num_own + 1):
        for theirs in range(own, num_theirs + 1):
            paired = best[own - 1][theirs - 1] + distance_LM[own - 1][theirs - 1]
            best[own][theirs] = min(best[own][theirs - 1], paired)
    partners: list[int] = []
    theirs = num_theirs
    for own in range(num_own, 0, -1):
        while theirs > own and best[own][theirs] == best[own][theirs - 1]:
            theirs -= 1
        theirs -= 1
        partners.insert(0, theirs)
    return partners


def distances(own: nn.ModuleList, theirs: nn.ModuleList) -> list[list[float]]:
    """Euclidean distances between every two blocks' smallest shared weight matrix, (L, M)."""
    key = _shared_matrix([dict(block.named_parameters()) for block in (*own, *theirs)])
    own_LK, theirs_MK = (
        torch.stack([block.get_parameter(key).float().flatten() for block in side]) for side in (own, theirs)
    )
    return torch.cdist(own_LK, theirs_MK).tolist()


def _shared_matrix(parameters: Sequence[dict[str, Tensor]]) -> str:
    """Name of the smallest parameter of the same shape in every block; a vector only where no matrix is shared."""
    first, *others = parameters
    shared = [name for name, p in first.items() if all(name in o and o[name].shape == p.shape for o in others)]
    assert shared, "blocks of one architecture and width share their norms"
    return min(shared, key=lambda name: (first[name].dim() == 1, first[name].numel()))


def _name(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)
