"""Models whose weights are divided over processes by rows, and a guard on the rows that one process holds.

`shard` leaves of every weight torch's `DTensor`, cut along its first axis as FSDP2's `fully_shard` cuts it; what is said here
of one holds of the other. The first axis is the output: a shard is a slice of whole rows. Grids and masks are laid
out in groups along the input, so a row's grid, mask, scales and projection depend on that row alone, and the guard of a
shard is the shard of the guard, bit for bit. What is not so is refused: one scale for a whole weight, and weights that are stored
input × output (GPT-2's `Conv1D`), of which a shard would be a slice of the inputs.

    shard(model, processes)
    local = LocalRows(model)                                     # shares the shards' memory
    guard = Guard(local, row_structure(structure, model), plan)  # `training.sharding` adds gradients and checkpoints

`whole`, `local` and `fill` also take ordinary tensors, of which every process has all.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from recoup.errors import StructureError
from recoup.structure.spec import Constraint, Structure

PER_ROW = 2  # a parameter of at least so many axes has one row of values per row of the weight


def shard(model: nn.Module, num_processes: int) -> None:
    """Leave of every parameter the rows of this process, as a `DTensor`; buffers stay whole, and ties stay ties.

    Every process must hold the same values before: nothing is sent.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (num_processes,))
    parts: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in parts:
                part = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
                parts[id(weight)] = nn.Parameter(part, requires_grad=weight.requires_grad)
            setattr(module, name, parts[id(weight)])


def whole(tensor: Tensor) -> Tensor:
    """All rows, gathered from the processes, all of which must call this; an ordinary tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory; an ordinary tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows: Tensor = tensor.to_local()
    return rows.detach()


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> None:
    """Lay the whole `values` into what of `tensor` this process holds."""
    local(tensor).copy_(values[rows_of(tensor)] if isinstance(tensor, DTensor) else values)


class LocalRows(nn.Module):
    """The shards that this process holds of a model, as a model of their own: in name, order and memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._rows = {name: nn.Parameter(local(weight).detach()) for name, weight in model.named_parameters()}

    def named_parameters(self, *_arguments: Any, **_settings: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The shards under the names of the whole weights, which a module of its own could not hold: they have dots."""
        yield from self._rows.items()


def row_structure(structure: Structure, model: nn.Module) -> Structure:
    """What the shards of this process must keep.

    Raises:
        StructureError: a weight cannot be constrained by rows.
    """
    constraints = {}
    for name, constraint in structure.constraints.items():
        weight = model.get_parameter(name)
        if isinstance(weight, DTensor):
            check_rows(len(weight), weight.device_mesh.size(), name)
        constraints[name] = row_constraint(constraint, rows_of(weight), name)
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


def rows_of(weight: Tensor) -> slice:
    """The rows that this process holds; all of a weight that is not sharded."""
    if not isinstance(weight, DTensor):
        return slice(0, len(weight))
    assert weight.placements == (Shard(0),), "cut along the first axis"
    return rows_held(len(weight), weight.device_mesh.get_local_rank(), weight.device_mesh.size())


def rows_held(count: int, rank: int, number: int) -> slice:
    """Which of `count` rows process `rank` of `number` holds: chunks as `torch.chunk` cuts them, so the last may be empty."""
    size = -(-count // number)
    return slice(min(rank * size, count), min((rank + 1) * size, count))


def check_rows(count: int, number: int, name: str) -> None:
    """Refuse a constrained weight of which some process would hold nothing: a grid is not fitted to no rows.

    Raises:
        StructureError: there are too few rows.
    """
    last = rows_held(count, number - 1, number)
    if last.start == last.stop:
        raise StructureError(f"{name}: {count} rows leave some of {number} processes none; launch fewer processes")
