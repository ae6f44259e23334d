"""Checkpoints as other tools write them, made from a tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import save_tiny

Parts = dict[str, Tensor]  # ending of a tensor's name → tensor


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose widths are multiples of every format's groups; 14 matrices in two blocks."""
    return save_tiny("llama", tmp_path_factory.mktemp("wide"), hidden_size=64, intermediate_size=128)


def rewritten(source: Path, folder: Path, quantization: dict, parts: Callable[[str, Tensor], Parts]) -> Path:
    """Copy a model folder with every matrix of its blocks replaced by a tool's tensors for it."""
    shutil.copytree(source, folder)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            tensors |= {
                f"{module}.{key}": value.clone(memory_format=torch.contiguous_format)
                for key, value in parts(module, tensor).items()
            }
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder
