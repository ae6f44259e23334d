"""Training with the fp32 weights divided over processes by rows, and with them all that trains and its moments.

    accelerate launch --config_file configs/accelerate/fsdp2.yaml -m recoup run CONFIG

Each process keeps a whole compute copy that samples, runs forward and backward; no collective call lies inside, so processes may
differ in their numbers of micro-batches. Once a step the gradients of the copy are summed and divided (reduce-scatter), the
guard and the optimizer work on rows, and the copy gathers its weights again, one at a time (`ComputeCopy.follow`).
ZeRO (arXiv 1910.02054) calls this its stages 1 and 2.

`fully_shard` itself would divide the compute copy too, but gathers it in every forward pass, once a token while sampling, and
blocks a process that has a micro-batch less than the others; of FSDP2 we take the layout, `DTensor` by rows.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Shard

from recoup.errors import ConfigError
from recoup.models.load import LanguageModel
from recoup.structure.guard import Guard, Training, check_fits
from recoup.structure.shards import LocalRows, row_structure, rows_of, shard, whole
from recoup.structure.spec import Constraint, Structure
from recoup.structure.trainable import LoRA
from recoup.training.optimizers import OptimizerName
from recoup.training.processes import Processes


def guard_of(student: LanguageModel, plan: Mapping[str, Training], lora: LoRA | None, processes: Processes) -> Guard:
    """The guard of a student; where processes share out the weights, each is left with its rows.

    Raises:
        StructureError: the student does not fit its structure, or a weight cannot be divided by rows.
    """
    if not processes.sharded:
        return Guard(student.model, student.structure, plan, lora)
    check_fits(dict(student.model.named_parameters()), student.structure)  # of rows, a mask too long would not be seen
    shard(student.model, processes.number)
    return RowGuard(student.model, student.structure, plan, lora)


def check_optimizer(name: OptimizerName, processes: Processes) -> None:
    """Refuse what does not work on rows alone.

    Raises:
        ConfigError: Adafactor averages down the columns; 8-bit moments have blocks that run across rows.
    """
    if processes.sharded and name != "adamw":
        raise ConfigError(f"memory.optimizer {name} cannot be divided over processes; take adamw, or ddp.yaml")


@dataclass(frozen=True)
class _Entry:
    """One tensor that the optimizer moves."""

    tensor: nn.Parameter
    key: str | None  # what it is to its weight; null: the weight itself
    weight: DTensor
    by_row: bool  # or whole in every process

    def spread(self, rows: Tensor) -> Tensor:
        """A tensor that goes with this one, moments for instance, as the part that it is of a whole."""
        return _spread(rows, self.weight) if self.by_row and rows.ndim > 0 else rows


class RowGuard(Guard):
    """A guard on this process's rows of a sharded model, and the gradients of a whole copy on their way there.

    Args:
        model: what trains, its parameters divided by `structure.shards.shard`.
        structure: of the whole model.
        plan: how each weight trains; null: every weight in full.
        lora: rank and scale of the weights that train as `lora`.

    Raises:
        StructureError: as `Guard`, or a weight cannot be divided by rows.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        plan: Mapping[str, Training] | None = None,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__(LocalRows(model), row_structure(structure, model), plan, lora)
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self._sharded = {name: weight for name, weight in weights.items() if isinstance(weight, DTensor)}
        self._whole, self._held = structure, dict[str, Tensor]()
        self._entries = list(self._list_entries())

    def listen(self, copy: nn.Module) -> None:
        """Hold the gradients of `copy`, whose parameters are whole and named as the model's, until `collect`."""
        for name, weight in copy.named_parameters():
            weight.requires_grad_(name in self._plan)
            if name in self._plan:
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._holding(name)))

    def start_from(self, earlier: Mapping[str, Tensor]) -> int:
        """As `Guard.start_from`, from whole weights; each process takes its rows."""
        held = {name: earlier[name] for name in self._sharded.keys() & earlier.keys()}
        return super().start_from({name: weight[rows_of(self._sharded[name])] for name, weight in held.items()})

    def collect(self, processes: Processes) -> None:
        """Sum what is held over processes, and give its rows to what trains in each; one weight at a time.

        A process whose rollouts left a weight without a gradient takes part with zeros.
        """
        for name in self._plan:
            held, sharded = self._held.pop(name, None), self._sharded[name]
            gradient = torch.zeros(sharded.shape, device=sharded.device) if held is None else held.to(sharded.dtype)
            term = DTensor.from_local(gradient, sharded.device_mesh, [Partial()], run_check=False)
            self.take(name, term.redistribute(placements=[Shard(0)]).to_local())
        processes.sum_gradients(entry.tensor for entry in self._entries if not entry.by_row)

    def clip(self, most: float, processes: Processes) -> float:
        """Scale the gradients so that their norm over all rows is at most `most`; returns the norm before."""
        by_row, rowless = (
            [e.tensor.grad for e in self._entries if e.by_row is chosen and e.tensor.grad is not None]
            for chosen in (True, False)
        )
        squares = processes.sum([float(torch.nn.utils.get_total_norm(by_row)) ** 2])[0]
        norm = math.sqrt(squares + float(torch.nn.utils.get_total_norm(rowless)) ** 2)
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), most, torch.tensor(norm))
        return norm

    def forget(self) -> None:
        """Drop the gradients that are held."""
        self._held.clear()

    @property
    def num_trained(self) -> int:
        """Numbers that the optimizers of all processes move, each counted once."""
        return sum(math.prod(entry.spread(entry.tensor).shape) for entry in self._entries)

    def state(self) -> dict[str, Tensor]:
        """What trains beside the model's own weights, as parts of a whole."""
        return {entry.key: entry.spread(entry.tensor.detach()) for entry in self._entries if entry.key is not None}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take this process's rows of a checkpoint's whole `state`."""
        for entry in self._entries:
            if entry.key is not None:
                values = state[entry.key]
                entry.tensor.copy_(values[rows_of(entry.weight)] if entry.by_row else values)
        self.project()

    def spread(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An optimizer's state, by `position.key`, as parts of a whole."""
        return {name: self._entries[_position(name)].spread(tensor) for name, tensor in moments.items()}

    def cut(self, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows of the whole state of an optimizer."""
        rows = {name: self._entries[_position(name)] for name, tensor in moments.items() if tensor.ndim > 0}
        return {
            name: tensor[rows_of(rows[name].weight)].clone() if name in rows and rows[name].by_row else tensor
            for name, tensor in moments.items()
        }

    def whole_structure(self) -> Structure:
        """The structure of the whole model as it now is, gathered into main memory; all processes must call this."""
        found = {name: self._whole_constraint(name, rows) for name, rows in self.structure.constraints.items()}
        return Structure(found, self.structure.shapes)

    def _whole_constraint(self, name: str, rows: Constraint) -> Constraint:
        sharded = self._sharded[name]
        parameters = {key: whole(_spread(value, sharded)).cpu() for key, value in rows.parameters.items()}
        return replace(self._whole.constraints[name].to(torch.device("cpu")), parameters=parameters)

    def _list_entries(self) -> Iterator[_Entry]:
        """In the order of `parameters`."""
        for name in self._plan:
            trainable, sharded = self._trainables.get(name), self._sharded[name]
            if trainable is None:
                yield _Entry(self._weights[name], None, sharded, by_row=True)
                continue
            for key, tensor in trainable.tensors.items():
                yield _Entry(tensor, f"{name}:{key}", sharded, by_row=key not in trainable.rowless)

    def _holding(self, name: str) -> Callable[[Tensor], None]:
        """A hook that adds a finished gradient to what is held; the first stays in its type, their sum is in fp32."""

        def hold(weight: Tensor) -> None:
            gradient, weight.grad = weight.grad, None
            assert gradient is not None, "called once a gradient is there"
            held = self._held.get(name)
            self._held[name] = gradient if held is None else held.float().add_(gradient)

        return hold


def whole_student(student: LanguageModel, processes: Processes) -> LanguageModel:
    """The student with all its rows, in the main memory of process 0; elsewhere, and if it is not sharded, the student."""
    if not processes.sharded:
        return student
    memo: dict[int, object] = {}
    for weight in student.model.parameters():
        rows = whole(weight.detach())
        if processes.is_main:
            memo[id(weight)] = nn.Parameter(rows.cpu(), requires_grad=False)
    return replace(student, model=copy.deepcopy(student.model, memo)) if processes.is_main else student


def _spread(rows: Tensor, like: DTensor) -> DTensor:
    """This process's rows of something that has as many rows as `like`, as the part that they are of it."""
    shape = torch.Size((len(like), *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    spread: DTensor = DTensor.from_local(
        rows.detach().contiguous(), like.device_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )
    return spread


def _position(name: str) -> int:
    """Of a parameter in its optimizer."""
    return int(name.partition(".")[0])
