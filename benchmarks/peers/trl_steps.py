"""What both of TRL's trainers need: steps timed, counted and ended by a budget, and one line if TRL is missing."""

import sys
import time
from typing import Any

try:
    import trl
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed for {sys.executable}; pip install trl==1.16.0, or give --peer-python")

from benchmarks.peers.job import Job, Spent, learning_rate, print_cost, print_spent

__all__ = ["Steps", "settings", "trl"]


class Steps(TrainerCallback):
    """Notes when each step ends; with a budget, sets each step's learning rate and stops with the step that ends nearest."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._began = 0.0
        self._ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Called by the trainer, after everything is loaded."""
        self._began = time.perf_counter()

    def on_step_begin(self, _args: Any, state: Any, _control: Any, optimizer: Any = None, **_: Any) -> None:
        """Called by the trainer, after its own scheduler."""
        if self._job.has_budget:
            share = self._job.share(sum(self._tokens(state)), time.perf_counter() - self._began)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self._job, state.global_step, share)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer."""
        self._ends.append(time.perf_counter())

    def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer after each step, when the step's tokens are known, and once more at the end."""
        if self._job.has_budget and "loss" in logs:
            spent = self._job.share(sum(self._tokens(state)), self._ends[-1] - self._began)
            half_a_step = spent / len(self._ends) / 2
            control.should_training_stop = spent + half_a_step >= 1

    def finish(self, trainer: Any) -> None:
        """Print the cost; with a budget, save the model."""
        tokens = self._tokens(trainer.state)
        if not self._job.has_budget:
            print_cost(self._ends, tokens)
            return
        checkpoint = f"{self._job.output}/checkpoint"
        trainer.save_model(checkpoint)
        print_spent(Spent(len(self._ends), round(sum(tokens)), self._ends[-1] - self._began, checkpoint))

    def _tokens(self, state: Any) -> list[float]:
        """By step; TRL logs the mean length of each step's completions."""
        return [row["completions/mean_length"] * self._job.batch for row in state.log_history if "loss" in row]


def settings(job: Job, on_cpu: bool) -> dict[str, Any]:
    """Settings that both trainers share: fp32 weights, bf16 compute, no checkpoint on the way, every step logged."""
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
