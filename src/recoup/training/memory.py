"""What a training step can spend to fit: time for memory, main memory for the accelerator's; and how much was used.

Checkpointing goes around each block's forward pass (arXiv 1604.06174). transformers' own
`activation_checkpointing_enable` is not used: it works in training mode only, which turns dropout on (the student
would no longer compute the function it samples from), and there it throws away the KV cache. Here a model stays in
evaluation mode, forward passes without gradients, sampling included, run as before, and hooks on a block see its output once.
"""

import resource
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from recoup.errors import TrainingError
from recoup.models.layers import blocks

PLAIN_ATTENTION_TOKENS = 512  # on a CPU, up to here attention is plain and keeps its scores (recover.compute)
LEAST_OFFLOADED = 2**16  # bytes: below this the copy's start costs more than the memory is worth
MEMINFO, STATUS, CGROUP = Path("/proc/meminfo"), Path("/proc/self/status"), Path("/sys/fs/cgroup")
CLEAR_REFS = Path("/proc/self/clear_refs")


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Keep only each block's input for the backward pass, and work the block out again there. Gradients are the same.

    Raises:
        StructureError: the model has no blocks that can be found.
    """
    for block in blocks(model):
        # nothing random runs in evaluation mode, so no generator state is kept
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def offloaded(model: nn.Module) -> AbstractContextManager[object]:
    """Context of a forward pass whose saved activations wait in main memory for the backward pass.

    The weights that the backward pass needs stay where they are, unlike with `torch.autograd.graph.save_on_cpu`. On a CPU
    there is nowhere else to go, and nothing happens.
    """
    device = next(model.parameters()).device
    return nullcontext() if device.type == "cpu" else activations_moved(model)


def activations_moved(model: nn.Module) -> AbstractContextManager[object]:
    """What `offloaded` does, whatever the device."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        small = tensor.numel() * tensor.element_size() < LEAST_OFFLOADED
        if small or tensor.untyped_storage().data_ptr() in weights:
            return tensor.device, tensor
        # pinned memory lets the copy back run beside the computation; torch keeps such blocks for the next step
        outside = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, outside.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def out_of_memory(error: BaseException) -> bool:
    """Whether fewer rollouts in one forward pass may cure this error.

    On Linux a process that main memory cannot hold is usually killed, not told: this catches what torch is told.
    """
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and should_reduce_batch_size(error))


def smaller(size: int) -> int:
    """The micro-batch size after `size` was too much: half of it, rounded down.

    Raises:
        TrainingError: it was 1.
    """
    if size == 1:
        raise TrainingError(
            "out of memory at micro_batch_size 1; set memory.gradient_checkpointing, train.what: lora or "
            "memory.optimizer: adafactor (`recoup plan` shows what each saves)"
        )
    return size // 2


def forget_peak_memory() -> None:
    """Let `peak_memory_bytes` count from here, where the system allows it (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_REFS.is_file():
        with suppress(OSError):
            CLEAR_REFS.write_text("5", encoding="ascii")  # the peak falls to what is resident now (proc(5))


def peak_memory_bytes() -> int:
    """Peak of the accelerator where there is one, else of this process: since it began, or since it was forgotten."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS.is_file():  # getrusage starts a child at its parent's peak
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """Memory that a run started now could use: free on the accelerator where there is one, else of the machine.

    A container's limit counts where it is lower. 0 where the system does not say (no /proc).
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    if not MEMINFO.is_file():
        return 0
    fields = dict(line.split(":") for line in MEMINFO.read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _number(path: Path) -> int | None:
    """A number in a file of the kernel; null where there is no such file, or it says `max`."""
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
