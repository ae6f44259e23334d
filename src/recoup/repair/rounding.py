"""Better compression to the same format: the teacher's weights are put anew on the student's own grids, or under new masks.

- On a grid: GPTQ (2210.17323). A mask beside the grid stays. Not AWQ: on SmolLM2-135M at int3, on 3,329 tokens, it took half
  as long again and left a token KL of 2.10 nats where GPTQ left 1.52, before its order and scales were better (rounded to
  nearest: 3.10).
- Under a mask alone: SparseGPT (2301.00774), with as many zeros in each matrix and the same N:M pattern. Which weights are
  zero changes.

Bits, groups, sparsity and pattern are the student's, so it costs the same to store and to run. The maths and the walk over
calibration text are the degrade stage's. The text is what the teacher wrote for the diagnosis, and more of its own where that is
too little: GPTQ wants several times as many tokens as a layer has inputs (see `degrade.gptq`).

This starts from the teacher, so it undoes whatever training put into the student before or after it was compressed. Where that
shows (its matrices that keep no structure, such as embeddings, are not the teacher's) the repair is refused; training that
moved only what was then rounded cannot be told from better rounding, and the note says so.

Shapes: O output and I input width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recoup.data.calibration import calibration_rollouts
from recoup.degrade.gather import Statistics
from recoup.degrade.gptq import gptq
from recoup.degrade.magnitude import masked
from recoup.degrade.sparsegpt import sparsegpt
from recoup.degrade.walk import walk_linears
from recoup.models.layers import block_linears
from recoup.models.load import LanguageModel
from recoup.models.logits import batches
from recoup.models.sample import Rollouts
from recoup.progress import Progress
from recoup.repair.base import Candidate, Damaged, other_shapes, rebased, weights
from recoup.structure.spec import Constraint, Structure

ENOUGH_TOKENS = 2048  # of the diagnosis's text; with fewer the teacher writes more
CALIBRATION_TOKENS = 4096  # what there is then
CALIBRATION_SEED = 221017323  # text that a run with an everyday seed does not score on
BATCH_SEQUENCES = 8
EQUAL_SHARE = 0.99  # of a matrix's entries, compared as bfloat16, in which checkpoints are often stored
NOTE = "starts from the teacher's weights: training that moved only the compressed weights would be undone"


def applies(damaged: Damaged) -> str | None:
    """Why it cannot be tried: nothing to round, other shapes, or a student that was trained as well."""
    if not _compressed(damaged.student):
        return "no linear layer of the student's blocks is on a grid or under a mask"
    return other_shapes(damaged) or _trained(damaged)


def candidates(damaged: Damaged, progress: Progress) -> Iterator[Candidate]:
    """The teacher compressed anew, column by column."""
    rollouts = _calibration(damaged)
    tokens = sum(int(batch.attention_BT.sum()) for batch in rollouts)
    constraints = _compressed(damaged.student)
    methods = sorted({"sparsegpt" if constraint.grid is None else "gptq" for constraint in constraints.values()})
    note = f"{NOTE}; other weights are zero" if "sparsegpt" in methods else NOTE
    settings = {"method": "+".join(methods), "calibration_tokens": tokens}
    told = partial(progress, f"repair: {' and '.join(methods)}")
    yield Candidate("rounding", settings, _column_by_column(damaged, rollouts, told), note)


@torch.no_grad()
def anew(weight_OI: Tensor, before: Constraint, second_moment_II: Tensor) -> tuple[Tensor, Constraint]:
    """A weight put on the grid or under as sparse a mask as `before` has, making up for each error in the columns after it.

    Args:
        weight_OI: what is compressed.
        before: the grid, mask and pattern it gets, but for the grid's parameters and the places of a lone mask's zeros.
        second_moment_II: Σ x xᵀ over calibration tokens.

    Returns:
        The weight, and what it keeps; a weight that had to keep nothing comes back as it is.

    Raises:
        StructureError: as `gptq` and `sparsegpt`.
    """
    if before.grid is not None:
        rounded_OI, parameters = gptq(weight_OI, second_moment_II, before.grid, before.mask_OI)
        return rounded_OI, replace(before, parameters=parameters, refit=False)
    if before.mask_OI is None:
        return weight_OI, before
    pattern = before.pattern or "unstructured"
    sparsity = 1 - int(before.mask_OI.sum()) / before.mask_OI.numel()
    updated_OI, mask_OI = sparsegpt(weight_OI, second_moment_II, pattern, sparsity)
    return updated_OI, masked(replace(before, mask_OI=None), mask_OI, pattern)


def _column_by_column(
    damaged: Damaged, rollouts: Sequence[Rollouts], progress: Callable[[int, int], None]
) -> LanguageModel:
    structure = damaged.student.structure

    def change(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        assert statistics.second_moment_II is not None, "asked for below"
        return anew(weight_OI, before, statistics.second_moment_II)

    model = rebased(damaged, _elsewhere(damaged.student))
    after = walk_linears(model, structure, rollouts, {"second_moment"}, change, progress)
    kept = {name: constraint for name, constraint in after.constraints.items() if name in structure.constraints}
    return replace(model, structure=Structure(kept, structure.shapes))


def _calibration(damaged: Damaged) -> list[Rollouts]:
    """The diagnosis's text, and where that is short what the teacher writes beside it."""
    there = int(damaged.rollouts.attention_BT.sum())
    missing = CALIBRATION_TOKENS - there if there < ENOUGH_TOKENS else 0
    more = calibration_rollouts("self", damaged.teacher, missing, CALIBRATION_SEED) if missing else []
    return [*batches(damaged.rollouts, BATCH_SEQUENCES), *more]


def _compressed(student: LanguageModel) -> dict[str, Constraint]:
    """What linear layers of the blocks keep, by weight."""
    names = {f"{layer}.weight" for layer in block_linears(student.model)}
    return {name: constraint for name, constraint in student.structure.constraints.items() if name in names}


def _elsewhere(student: LanguageModel) -> set[str]:
    """Constrained weights outside the blocks' linear layers, such as embeddings: they stay the student's."""
    return student.structure.constraints.keys() - _compressed(student).keys()


def _trained(damaged: Damaged) -> str | None:
    """A matrix that keeps no structure and is not the teacher's, as a reason."""
    teacher = weights(damaged.teacher)
    for name, weight in weights(damaged.student).items():
        if weight.dim() > 1 and name not in damaged.student.structure.constraints:
            equal = (weight.bfloat16() == teacher[name].bfloat16()).float().mean()
            if equal < EQUAL_SHARE:
                return (
                    f"{name} is not the teacher's, so the student was also trained, which compressing the teacher anew would "
                    "undo; give its state before compression as the teacher"
                )
    return None
