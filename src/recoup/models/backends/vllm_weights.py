"""How a vLLM server comes by the student's weights: by vLLM's own transfer engine, or through a folder that both see.

With vLLM installed beside recoup and the student on a CUDA device, vLLM's NCCL engine sends them from memory to memory
(vLLM, docs/training/weight_transfer: `WeightTransferTrainerFactory`, since 0.28). Without, the student is saved into the run
folder and the server told to read it (worker method `reload_weights(weights_path=...)` through `/collective_rpc`). Both ways
have only been tried against stand-ins of what vLLM documents, never against vLLM itself.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from recoup.errors import SourceError
from recoup.models.backends.base import Setup, required
from recoup.models.backends.vllm_http import CONTROL_SECONDS, Server
from recoup.models.messages import quiet


class Sender(Protocol):
    """A way of sending weights."""

    def send(self) -> None:
        """Send the student's present weights; returns when the server has them."""


class Nccl:
    """vLLM's NCCL engine: every training process takes part, the first one sends.

    Raises:
        SourceError: vLLM is too old, or the server refuses: it needs `--weight-transfer-config '{"backend": "nccl"}'`.
    """

    def __init__(self, server: Server, model: PreTrainedModel) -> None:
        transfer = required("vllm.distributed.weight_transfer", "vllm_server")
        engine = required("vllm.distributed.weight_transfer.nccl_engine", "vllm_server")
        network = required("vllm.utils.network_utils", "vllm_server")
        info = engine.NCCLTrainerInitInfo(
            master_address=network.get_ip(),
            master_port=network.get_open_port(),
            world_size=1 + int(server.get("/get_world_size")["world_size"]),  # the sender and all of vLLM's workers
            rank=process(),
        )
        client = transfer.HTTPVLLMWeightSyncClient(server.address, timeout=CONTROL_SECONDS)
        self._engine = transfer.WeightTransferTrainerFactory.trainer_init(
            init_info=info, client=client, source=transfer.ModuleSource(model)
        )

    def send(self) -> None:
        """Broadcast the parameters."""
        self._engine.send_weights()


class Disk:
    """The weights as safetensors in a folder of the run, under a new name each time.

    A new name because a network file system may answer an old one from its cache.
    """

    def __init__(self, server: Server, model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
        self._server, self._model, self._folder, self._dtype = server, model, folder.resolve(), dtype
        self._count = 0

    def send(self) -> None:
        """Save the weights, have the server load them, and delete them."""
        self._count += 1
        if process() != 0:
            return
        folder = self._folder / f"server_weights_{self._count}"
        with quiet():
            self._model.save_pretrained(folder, state_dict=_cast(self._model, self._dtype))
        try:
            request = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._server.post("/collective_rpc", request)
        finally:
            shutil.rmtree(folder)


def sender(server: Server, setup: Setup) -> Sender:
    """The fastest way that this machine has.

    Raises:
        SourceError: the student is sharded over processes, and vLLM's engine, which gathers it, is not here.
    """
    model = setup.student.model
    if model.device.type == "cuda" and importlib.util.find_spec("vllm") is not None:
        return Nccl(server, model)
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise SourceError("a sharded student reaches a vLLM server through vLLM's own engine: pip install 'vllm>=0.28'")
    return Disk(server, model, setup.folder, setup.dtype)


def process() -> int:
    """Number of this training process; 0 where there is one only."""
    return dist.get_rank() if dist.is_initialized() else 0


def together() -> None:
    """Wait for the other training processes."""
    if dist.is_initialized():
        dist.barrier()


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict in type `dtype`; tied weights stay one tensor, so that they are saved once."""
    cast: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in cast:
            cast[tensor.data_ptr()] = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        state[name] = cast[tensor.data_ptr()]
    return state
