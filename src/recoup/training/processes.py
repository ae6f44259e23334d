"""Several processes that train one model, all through accelerate; one process alone is the case of `ALONE`.

    accelerate launch --config_file configs/accelerate/ddp.yaml -m recoup run CONFIG

Every process holds the whole model (data parallel); with fsdp2.yaml they share out what is in fp32 (`training.sharding`). Of
each step's rollouts a process samples, scores and learns from its own; gradients and figures are summed over all, so that
every process then takes the same optimizer step on the same numbers, and takes the same decisions. Only process 0 writes.

No `DistributedDataParallel`: the guard hands gradients on to latent weights, low-rank factors or scales, which no module
owns, so there is nothing that a wrapper could hook. The sum over processes is taken once a step, after the last
micro-batch, in buckets; DDP would take it in the last backward pass and hide part of it behind that.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env, reduce
from torch import Tensor

from recoup.errors import ConfigError, RecoupError

T = TypeVar("T")
# process 0 alone degrades, diagnoses and evaluates, for hours, while the others wait; one that died is noticed by
# the launcher, not by this limit
LONGEST_WAIT = timedelta(days=2)
# as accelerate tells its children
FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
# the first is another library; by the second transformers loads no weights in all processes but one; the third is not built
FSDP_SETTINGS = {
    "FSDP_VERSION": ("2", "fsdp_version"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "fsdp_cpu_ram_efficient_loading"),
    "FSDP_OFFLOAD_PARAMS": ("false", "fsdp_offload_params"),
}
BUCKET_NUMBERS = 2**25  # gradients summed at once: 128 MB in float32, above which links are busy anyway


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is; with one, nothing is communicated.

    `sharded`: they share out the fp32 weights, and what trains, by rows; else each has all.
    """

    rank: int = 0
    number: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """Which of `count` rows are this process's: every `number`-th, so that rows sorted by length are dealt out evenly."""
        return range(self.rank, count, self.number)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over processes of each value, in float64, the same bits in every process."""
        if self.number == 1:
            return [float(value) for value in values]
        total: list[float] = reduce(torch.tensor(values, dtype=torch.float64, device=_device()), "sum").tolist()
        return total

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the parameters' gradients over processes, many at once; a missing gradient counts as zero.

        A process whose rollouts left a parameter without a gradient must still take part, or the others would wait for it.
        """
        if self.number == 1:
            return
        for bucket in _buckets(parameters):
            for parameter in bucket:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, items: list[T]) -> list[T]:
        """Everyone's items, in order of rank."""
        return items if self.number == 1 else list(gather_object(items))

    def share(self, value: T) -> T:
        """Process 0's value."""
        if self.number == 1:
            return value
        shared: T = broadcast_object_list([value])[0]
        return shared

    def on_main(self, work: Callable[[], object]) -> None:
        """Process 0 does it and the others wait; what the user got wrong stops all of them.

        Raises:
            RecoupError: what process 0 met.
        """
        met: RecoupError | None = None
        if self.is_main:
            try:
                work()
            except RecoupError as error:
                met = error
        met = self.share(met)
        if met is not None:
            raise met

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.number > 1:
            PartialState().wait_for_everyone()

    @contextmanager
    def first_on_machine(self) -> Iterator[None]:
        """One process of each machine goes first: it fills caches that the others then find."""
        if self.number == 1:
            yield
            return
        with PartialState().local_main_process_first():
            yield


ALONE = Processes()


def all_processes() -> Processes:
    """The processes that a launcher such as `accelerate launch` or `torchrun` started; `ALONE` without one.

    Call it before a model is loaded: it gives each process its own accelerator. Without one they talk through gloo.

    Raises:
        ConfigError: the launcher was told to shard in a way that is not supported.
    """
    if parse_flag_from_env(DEEPSPEED):
        raise ConfigError("DeepSpeed is not supported: launch with configs/accelerate/fsdp2.yaml (docs/distributed.md)")
    sharded = parse_flag_from_env(FSDP)
    for variable, (value, name) in FSDP_SETTINGS.items():
        if sharded and os.environ.get(variable, value).lower() != value:
            raise ConfigError(f"{name} must be {value}: launch with configs/accelerate/fsdp2.yaml")
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, sharded and state.num_processes > 1)


def _device() -> torch.device:
    device: torch.device = PartialState().device
    return device


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, at most `BUCKET_NUMBERS` numbers together or one parameter."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        full = sum(held.numel() for held in bucket) + parameter.numel() > BUCKET_NUMBERS
        other = bucket and (bucket[0].dtype, bucket[0].device) != (parameter.dtype, parameter.device)
        if bucket and (full or other):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
