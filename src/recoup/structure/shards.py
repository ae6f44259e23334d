"""A guard on the rows that one process holds of a model sharded by `fully_shard` (FSDP2).

FSDP2 cuts every weight along its first axis, which is the output: a shard is a slice of whole rows. Grids and masks are laid
out in groups along the input, so a row's grid, mask, scales and projection depend on that row alone, and the guard of a
shard is the shard of the guard, bit for bit. What is not so is refused: one scale for a whole weight, and weights that are stored
input × output (GPT-2's `Conv1D`), of which a shard would be a slice of the inputs.

    local = LocalRows(sharded)                                   # shares the shards' memory
    guard = Guard(local, row_structure(structure, sharded), plan)

Gradients: FSDP2 averages over processes, so multiply by their number for the sum. The norm of all gradients is the root of the
sum over processes of squares. A low-rank factor A is whole in every process, and its gradient is to be summed over them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from recoup.errors import StructureError
from recoup.structure.spec import Constraint, Structure

PER_ROW = 2  # a parameter of at least so many axes has one row of values per row of the weight


class LocalRows(nn.Module):
    """The shards that this process holds of a model, as a model of their own: in name, order and memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._rows = {name: nn.Parameter(_local(weight)) for name, weight in model.named_parameters()}

    def named_parameters(self, *_arguments: Any, **_settings: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The shards under the names of the whole weights, which a module of its own could not hold: they have dots."""
        yield from self._rows.items()


def row_structure(structure: Structure, model: nn.Module) -> Structure:
    """What the shards of this process must keep.

    Raises:
        StructureError: a weight cannot be constrained by rows.
    """
    weights = dict(model.named_parameters())
    constraints = {name: row_constraint(c, _rows(weights[name]), name) for name, c in structure.constraints.items()}
    return Structure(constraints, structure.shapes)


def row_constraint(constraint: Constraint, rows: slice, name: str) -> Constraint:
    """The constraint of some rows of the weight `name`.

    Raises:
        StructureError: the weight is stored transposed, or its grid has a parameter that belongs to no row.
    """
    if constraint.transposed:
        raise StructureError(f"{name}: stored input × output, so it cannot be sharded by rows; train it unsharded")
    whole = [key for key, value in constraint.parameters.items() if value.ndim < PER_ROW]
    if whole:
        grid = constraint.describe()
        raise StructureError(
            f"{name}: {grid}: {whole[0]!r} belongs to no row, so it cannot be sharded; train it unsharded"
        )
    parameters = {key: value[rows].clone() for key, value in constraint.parameters.items()}
    mask_OI = None if constraint.mask_OI is None else constraint.mask_OI[rows].clone()
    return replace(constraint, parameters=parameters, mask_OI=mask_OI)


def _local(weight: Tensor) -> Tensor:
    local: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
    return local.detach()


def _rows(weight: Tensor) -> slice:
    """The rows that this process holds, in chunks as `torch.chunk` cuts them; all of a weight that is not sharded."""
    if not isinstance(weight, DTensor):
        return slice(0, len(weight))
    assert weight.placements == (Shard(0),), "fully_shard cuts along the first axis"
    size = -(-len(weight) // weight.device_mesh.size())
    start = min(weight.device_mesh.get_local_rank() * size, len(weight))
    return slice(start, start + len(weight.to_local()))
