"""Layer by layer: debiased CKA of the hidden states on the same tokens, and drift of the weights.

The first token of a sequence is an attention sink: in most blocks its hidden state is some hundred times longer than the
median and points the same way whatever the damage, so that with it CKA reads 1.00 for a wrecked model. `linear_cka` leaves it
out, `linear_cka_all_tokens` keeps it. Pads never count. A chat template's common opening counts once in every sequence.

Memory: three D × D float64 matrices a block (240 MB at 30 blocks of width 576), the first tokens' hidden states, and the
hidden states of one batch.

Shapes: B rollouts, T padded tokens, N tokens, D student width, E teacher width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recoup.cka import Moments, debiased, update
from recoup.diagnose.drift import relative_drift, weight_matrices
from recoup.models.capture import hidden_states
from recoup.models.layers import blocks
from recoup.models.load import LanguageModel
from recoup.models.logits import batches
from recoup.models.sample import Rollouts, position_ids
from recoup.results import LayerDamage

BATCH_SIZE = 8  # rollouts in one forward pass


@dataclass(frozen=True)
class _Seen:
    """What one pair of blocks has shown so far.

    First tokens stay apart, in float64: few and long, they would cost the others their digits in a float32 product.
    """

    rest: Moments
    first_x_BD: Tensor
    first_y_BE: Tensor


def layer_damage(
    teacher: LanguageModel, student: LanguageModel, rollouts: Rollouts
) -> tuple[tuple[LayerDamage, ...], int]:
    """Damage of each student block against its teacher block, on the prompts and completions of `rollouts`.

    Returns:
        One record a student block, and n: the tokens behind `linear_cka`, first tokens left out.

    Raises:
        SourceError: a hidden state is NaN or infinite.
        DataError: too few tokens for the estimator.
    """
    student_blocks, teacher_blocks = blocks(student.model), blocks(teacher.model)
    pairs = pair_blocks(len(student_blocks), len(teacher_blocks))
    seen = _see_all(teacher, student, rollouts, pairs)
    damage = tuple(
        LayerDamage(
            layer=index,
            linear_cka=debiased(pair.rest),
            linear_cka_all_tokens=debiased(update(pair.rest, pair.first_x_BD, pair.first_y_BE, name=f"block {index}")),
            relative_drift=relative_drift(
                weight_matrices(student_blocks[index]), weight_matrices(teacher_blocks[pairs[index]])
            ),
        )
        for index, pair in seen.items()
    )
    return damage, seen[0].rest.num_tokens


def pair_blocks(num_student: int, num_teacher: int) -> tuple[int, ...]:
    """The teacher block for each student block: the one at the same relative depth, the last with the last.

    Equal depths pair one to one; when 4 blocks were pruned to 2, student blocks 0 and 1 pair with teacher blocks 1 and 3.
    """
    return tuple(-(-(index + 1) * num_teacher // num_student) - 1 for index in range(num_student))


def _see_all(
    teacher: LanguageModel, student: LanguageModel, rollouts: Rollouts, pairs: Sequence[int]
) -> dict[int, _Seen]:
    seen: dict[int, _Seen] = {}
    for batch in batches(rollouts, BATCH_SIZE):
        first_BT = batch.attention_BT & (position_ids(batch.attention_BT) == 0)
        student_states, teacher_states = hidden_states(student.model, batch), hidden_states(teacher.model, batch)
        for index, teacher_index in enumerate(pairs):
            name = f"block {index}, {student.name} against {teacher.name}"
            states = student_states[index], teacher_states[teacher_index]
            seen[index] = _see(seen.get(index), states, batch.attention_BT, first_BT, name)
    return seen


def _see(
    before: _Seen | None, states: tuple[Tensor, Tensor], attention_BT: Tensor, first_BT: Tensor, name: str
) -> _Seen:
    X_BTD, Y_BTE = states
    rest_BT = attention_BT & ~first_BT
    rest = update(before.rest if before else None, X_BTD[rest_BT], Y_BTE[rest_BT], name=name)
    first_x_BD, first_y_BE = X_BTD[first_BT].double(), Y_BTE[first_BT].double()
    if before is None:
        return _Seen(rest, first_x_BD, first_y_BE)
    return _Seen(rest, torch.cat([before.first_x_BD, first_x_BD]), torch.cat([before.first_y_BE, first_y_BE]))
