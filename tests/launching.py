"""Starts and stops processes as a user does, for `test_processes` and `test_sharded`."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
BASE: dict[str, Any] = {
    "steps": 4, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-2, "precision": "fp32", "warmup_steps": 0,
    "rollout": {"max_tokens": 8, "temperature": 1.0}, "checkpoint_every": 2,
    "bootstrap": {"overlap": 1.0, "check_every": 1, "max_steps": 2},
}  # fmt: skip


def launch(*program: str, config: str = "ddp") -> subprocess.Popen[str]:
    """Two processes, by one of the configs that recoup ships."""
    port = 20_000 + os.getpid() % 20_000
    path = str(ROOT / "configs" / "accelerate" / f"{config}.yaml")
    flags = ["--config_file", path, "--num_processes", "2", "--main_process_port", str(port)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """What it said; it must have ended well."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def killed_at_a_checkpoint(process: subprocess.Popen[str], stage: Path) -> bool:
    """Kill launcher and workers when the first checkpoint of `stage` is there; whether that was before its end."""
    deadline = time.monotonic() + 100
    while not (stage / "state" / "position.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    launcher = psutil.Process(process.pid)
    for each in [launcher, *launcher.children(recursive=True)]:  # the workers are in sessions of their own
        each.kill()
    process.communicate()
    return not (stage / "result.json").exists()
