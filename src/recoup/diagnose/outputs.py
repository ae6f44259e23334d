"""How far the parts of a block drifted: what its attention, its feed-forward part and each of its query heads put out.

Drift is ‖O_S − O_T‖_F / ‖O_T‖_F over the same tokens, each model on its own stream: what a part is handed has drifted too. A
head's output is what it hands to the attention's output projection. Unlike CKA this sees rotation and scale, and unlike a
block's hidden state it is not carried along by the residual stream from the blocks before.

Shapes: N tokens, H heads (1 for a whole part), d width of a head or part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.models.capture import Part


@dataclass(frozen=True)
class PartDrift:
    """Drift of one block's parts; null or empty where shapes differ or the architecture's parts cannot be told apart."""

    attention: float | None
    ffn: float | None
    heads: tuple[float, ...]


def square_sums(
    student: Mapping[Part, Float[Tensor, "N ..."]],
    teacher: Mapping[Part, Float[Tensor, "N ..."]],
    partners: Sequence[int],
    mask_N: Bool[Tensor, " N"],
) -> dict[Part, Float[Tensor, "2 _"]]:
    """‖O_S − O_T‖² and ‖O_T‖² of every head of every part that both models have in one shape, in float64.

    Args:
        student: part of a block → its outputs (N, H, d).
        teacher: the same, at the same tokens.
        partners: the teacher's block for each of the student's.
        mask_N: true at tokens that count.
    """
    sums: dict[Part, Tensor] = {}
    for (kind, index), output_NHd in student.items():
        other_NHd = teacher.get((kind, partners[index]))
        if other_NHd is not None and other_NHd.shape == output_NHd.shape:
            other_NHd = other_NHd[mask_N].float()
            moved_NHd = output_NHd[mask_N].float() - other_NHd
            sums[kind, index] = torch.stack([_square_sum(moved_NHd), _square_sum(other_NHd)])
    return sums


def part_drift(sums: Sequence[Mapping[Part, Float[Tensor, "2 _"]]], num_blocks: int) -> tuple[PartDrift, ...]:
    """Drift of each of the student's blocks over several batches, from the `square_sums` of each.

    A part that puts out nothing but zeros in both models has not drifted; in the teacher only, its drift is infinite.
    """
    total_2H = {part: torch.stack([batch[part] for batch in sums]).sum(0) for part in sums[0]}
    ratios = {part: _root_ratio(*of_part_2H).tolist() for part, of_part_2H in total_2H.items()}
    return tuple(
        PartDrift(
            attention=ratios.get(("attention", index), [None])[0],
            ffn=ratios.get(("ffn", index), [None])[0],
            heads=tuple(ratios.get(("heads", index), ())),
        )
        for index in range(num_blocks)
    )


def _square_sum(output_NHd: Tensor) -> Tensor:
    """By head: a token's squares are summed in float32, tokens in float64."""
    return output_NHd.square().sum(2).sum(0, dtype=torch.float64)


def _root_ratio(moved_H: Tensor, size_H: Tensor) -> Tensor:
    return torch.where(moved_H == 0, 0, moved_H / size_H).sqrt()
