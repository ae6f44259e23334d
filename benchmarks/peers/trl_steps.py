"""What both of TRL's trainers need: when each step ended, how many tokens it had, and one line if TRL is missing."""

import sys
import time
from typing import Any

try:
    import trl
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed for {sys.executable}; pip install trl==1.16.0, or give --peer-python")

from benchmarks.peers.job import Job, print_cost

__all__ = ["Steps", "settings", "trl"]


class Steps(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self.ends.append(time.perf_counter())

    def print(self, trainer: Any, batch: int) -> None:
        """Print the cost; TRL logs the mean length of each step's completions."""
        lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "loss" in row]
        print_cost(self.ends, [length * batch for length in lengths])


def settings(job: Job, on_cpu: bool) -> dict[str, Any]:
    """Settings that both trainers share: fp32 weights, bf16 compute, no checkpoint, every step logged."""
    return {
        "output_dir": job.output,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": job.steps,
        "max_completion_length": job.tokens,
        "temperature": job.temperature,
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "bf16": True,
        "use_cpu": on_cpu,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **job.settings,
    }
