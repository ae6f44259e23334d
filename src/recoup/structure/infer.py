"""What a student keeps that was made elsewhere: masks from its exact zeros, changed shapes from the two configs.

A weight that training moves is never exactly 0.0 in more than stray places, while pruning tools write zeros. So a matrix with
a few percent of them has been pruned. That is false of a weight on a grid, where rounding makes zeros: leave such names out.

N:M is named as NVIDIA names it (2104.08378): at most N of M consecutive inputs are nonzero.
"""

from collections.abc import Mapping

from jaxtyping import Bool
from torch import Tensor, nn

from recoup.structure.spec import Constraint, Structure

LEAST_ZEROS = 0.05  # share: stray zeros of bfloat16 weights are far below, the mildest pruning in use (10%) is above
PATTERNS = ("2:4", "4:8")  # the strictest first: whatever keeps 2:4 keeps 4:8
SHAPE_FIELDS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "n_inner", "ffn_dim", "vocab_size",
)  # fmt: skip


def masks_from_zeros(model: nn.Module, names: Mapping[str, bool], least: float = LEAST_ZEROS) -> dict[str, Constraint]:
    """A mask for every weight matrix of which at least a share `least` is exactly zero.

    Args:
        model: what was pruned elsewhere.
        names: parameter name → whether the weight is stored input × output; leave out weights on a grid.
        least: share of zeros, from 0 to 1, below which a weight counts as free.

    Returns:
        Parameter name → constraint with the mask, and its pattern where it is an N:M mask of a known kind.
    """
    constraints = {}
    for name, transposed in names.items():
        free = Constraint(transposed=transposed)
        mask_OI = free.view_OI(model.get_parameter(name).detach()) != 0
        if 1 - mask_OI.float().mean().item() >= least:
            constraints[name] = Constraint(mask_OI=mask_OI, transposed=transposed, pattern=pattern_of(mask_OI))
    return constraints


def pattern_of(mask_OI: Bool[Tensor, "O I"]) -> str | None:
    """The strictest known N:M pattern that the mask keeps everywhere; null: none."""
    return next((pattern for pattern in PATTERNS if keeps_pattern(mask_OI, pattern)), None)


def keeps_pattern(mask_OI: Bool[Tensor, "O I"], pattern: str) -> bool:
    """Whether at most N of every M consecutive inputs are kept, for a `pattern` N:M; false if M does not divide the inputs."""
    kept, group = map(int, pattern.split(":"))
    outputs, inputs = mask_OI.shape
    if inputs % group:
        return False
    return bool((mask_OI.reshape(outputs, -1, group).sum(-1) <= kept).all())


def shapes_against(student_config: object, teacher_config: object) -> dict[str, dict[str, int]]:
    """Config fields in which the student is smaller than its teacher: field → {"before": teacher's, "after": student's}.

    A field that either config lacks is skipped. Vocabularies differ by padding alone in some model families.
    """
    shapes = {}
    for field in SHAPE_FIELDS:
        before, after = _size(teacher_config, field), _size(student_config, field)
        if before is not None and after is not None and after < before:
            shapes[field] = {"before": before, "after": after}
    return shapes


def merge(declared: Structure, inferred: Structure) -> Structure:
    """What a model declares, and for every weight and field it says nothing of, what was inferred."""
    return Structure({**inferred.constraints, **declared.constraints}, {**inferred.shapes, **declared.shapes})


def _size(config: object, field: str) -> int | None:
    """A size of a config; GPT-2 writes a null width for 4 D."""
    value = getattr(config, field, None)
    if value is None and field == "n_inner" and hasattr(config, field):
        return 4 * int(config.hidden_size)  # type: ignore[attr-defined]
    return value if isinstance(value, int) else None
