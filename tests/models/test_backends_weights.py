"""How weights reach a vLLM server: vLLM's NCCL engine by a stand-in, and who speaks when there are several processes."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from recoup.errors import SourceError
from recoup.models.backends import Setup, vllm_server, vllm_weights
from recoup.models.backends.vllm_http import CONTROL_SECONDS, Server
from recoup.models.backends.vllm_server import VllmServer
from recoup.models.load import load


class Recorder:
    """Stands in for `Server`."""

    def __init__(self, *_address: str) -> None:
        self.asked: list[str] = []
        self.address = "http://server"

    def get(self, path: str) -> dict[str, Any]:
        answers: dict[str, dict[str, Any]] = {
            "/get_world_size": {"world_size": 4},
            "/v1/models": {"data": [{"id": "m"}]},
        }
        return answers[path]

    def post(self, path: str, payload: dict[str, Any] | None = None, seconds: float = 0) -> dict[str, Any]:
        self.asked.append(path)
        return {}


def server() -> Server:
    return Recorder()  # type: ignore[return-value]


def test_nccl_is_driven_as_vllm_documents(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trainer_init(init_info, client, source)` once, `send_weights()` a round; the sender counts as one more process."""
    made: list[SimpleNamespace] = []

    def trainer_init(**given) -> SimpleNamespace:
        made.append(SimpleNamespace(**given, sent=0))
        made[0].send_weights = lambda: setattr(made[0], "sent", made[0].sent + 1)
        return made[0]

    modules: dict[str, dict[str, Any]] = {
        "vllm": {"__path__": []},
        "vllm.distributed": {"__path__": []},
        "vllm.utils": {"__path__": []},
        "vllm.utils.network_utils": {"get_ip": lambda: "10.0.0.1", "get_open_port": lambda: 1234},
        "vllm.distributed.weight_transfer": {
            "__path__": [],
            "HTTPVLLMWeightSyncClient": lambda address, timeout: (address, timeout),
            "ModuleSource": lambda model: ("source", model),
            "WeightTransferTrainerFactory": SimpleNamespace(trainer_init=trainer_init),
        },
        "vllm.distributed.weight_transfer.nccl_engine": {"NCCLTrainerInitInfo": SimpleNamespace},
    }
    for name, names in modules.items():
        module = ModuleType(name)
        module.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, module)
    model = load(str(tiny_model)).model
    sender = vllm_weights.Nccl(server(), model)
    sender.send()
    (engine,) = made
    assert vars(engine.init_info) == {"master_address": "10.0.0.1", "master_port": 1234, "world_size": 5, "rank": 0}
    assert engine.client == ("http://server", CONTROL_SECONDS)
    assert engine.source == ("source", model)
    assert engine.sent == 1


def test_vllm_too_old_for_the_engine_is_one_line(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    with pytest.raises(SourceError, match=r"needs vllm.distributed.weight_transfer .*vllm>=0.28"):
        vllm_weights.Nccl(server(), load(str(tiny_model)).model)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (0, ["together", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume", "together"]),
        (1, ["together", "together"]),
    ],
)
def test_the_first_process_alone_speaks_and_all_wait_for_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: int, expected: list[str]
) -> None:
    monkeypatch.setattr(vllm_server, "Server", Recorder)
    backend = VllmServer(Setup(load(str(tiny_model)), torch.float32, tmp_path, server="http://server"))
    asked = backend._server.asked  # type: ignore[attr-defined]
    for module in (vllm_server, vllm_weights):
        monkeypatch.setattr(module, "process", lambda: process)
    monkeypatch.setattr(vllm_server, "together", lambda: asked.append("together"))
    backend.follow()
    assert asked == expected


def test_a_sharded_student_without_vllm_is_one_line(tmp_path: Path) -> None:
    shard = type("Shard", (), {"__class__": DTensor})()  # what isinstance asks for
    model = SimpleNamespace(device=torch.device("cpu"), parameters=lambda: [shard])
    setup = SimpleNamespace(student=SimpleNamespace(model=model), folder=tmp_path, dtype=torch.float32)
    with pytest.raises(SourceError, match="a sharded student"):
        vllm_weights.sender(server(), setup)  # type: ignore[arg-type]
