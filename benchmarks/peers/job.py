"""What every contender is given and what it prints; imports nothing but the standard library, for other environments' sake.

Run a contender: `python -m benchmarks.peers.NAME JOB.json`
"""

import itertools
import json
import math
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KIB = 1024
LEAST_RATE = 0.1  # of the peak, where the budget is spent: recoup's default


@dataclass(frozen=True)
class Job:
    """A repair that several trainers can do.

    With a budget, `steps` is the most there can be, the learning rate follows what is spent, and the repaired model is kept.
    """

    student: str  # folder
    teacher: str  # folder
    prompts: str  # JSON lines of `prompt` and `answer`, texts
    output: str  # folder
    batch: int
    tokens: int  # longest completion
    steps: int
    temperature: float = 0.8
    learning_rate: float = 1e-5
    warmup: int = 0  # steps
    seed: int = 0
    budget_tokens: int | None = None  # completion tokens of all steps
    budget_seconds: float | None = None  # of all steps; loading and saving are not counted
    settings: dict[str, Any] = field(default_factory=dict)  # the contender's own

    def rows(self) -> list[dict[str, str]]:
        """The prompt file."""
        return [json.loads(line) for line in Path(self.prompts).read_text(encoding="utf-8").splitlines()]

    @property
    def has_budget(self) -> bool:
        """Whether it ends when something is spent."""
        return self.budget_tokens is not None or self.budget_seconds is not None

    def share(self, tokens: float, seconds: float) -> float:
        """Of the budget, whichever part of it is further spent; 0 without a budget."""
        limits = (tokens, self.budget_tokens), (seconds, self.budget_seconds)
        return max((spent / limit for spent, limit in limits if limit is not None), default=0.0)


@dataclass(frozen=True)
class Cost:
    """What it took, without the first step, in which things are still being set up."""

    seconds: list[float]  # by step
    tokens: list[float]  # completion tokens by step
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second of all steps together."""
        return sum(self.tokens) / sum(self.seconds)


@dataclass(frozen=True)
class Spent:
    """What a repair with a budget took, its first step included, and what it left."""

    steps: int
    tokens: int  # completion tokens
    seconds: float
    checkpoint: str  # folder


def learning_rate(job: Job, step: int, share: float) -> float:
    """The schedule that recoup follows under a budget: linear warm-up, then a cosine from the peak over what is spent.

    Args:
        job: peak and warm-up.
        step: counted from 0.
        share: of the budget, spent before this step.
    """
    if step < job.warmup:
        return job.learning_rate * (step + 1) / (job.warmup + 1)
    cosine = (1 + math.cos(math.pi * min(1.0, share))) / 2
    return job.learning_rate * (LEAST_RATE + (1 - LEAST_RATE) * cosine)


def read_job() -> Job:
    """The job named on the command line."""
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


def print_cost(ends: Sequence[float], tokens: Sequence[float], period: int = 1) -> None:
    """Print what the steps cost, as the process's last line.

    Args:
        ends: when each step ended, seconds; the first only says when the second began.
        tokens: completion tokens of each step.
        period: steps after which the work repeats; only whole periods are printed, the last ones.
    """
    kept = (len(ends) - 1) // period * period
    if kept == 0:
        sys.exit(f"{len(ends)} steps are too few: work that repeats after {period} needs {period + 1} at least")
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    print(json.dumps(asdict(Cost(seconds[-kept:], list(tokens[-kept:]), _peak_bytes()))), flush=True)


def print_spent(spent: Spent) -> None:
    """Print what a repair with a budget took, as the process's last line."""
    print(json.dumps(asdict(spent)), flush=True)


def measure(contender: str, job: Job, python: str = sys.executable) -> Cost:
    """Let a contender do a job without a budget in a process of its own, from the repository's root.

    Raises:
        SystemExit: it failed; its last line is given.
    """
    return Cost(**_printed(contender, job, python))


def repair(contender: str, job: Job, python: str = sys.executable) -> Spent:
    """Let a contender do a job with a budget in a process of its own, from the repository's root.

    Raises:
        SystemExit: it failed; its last line is given.
    """
    assert job.has_budget, "nothing says when it ends"
    return Spent(**_printed(contender, job, python))


def _printed(contender: str, job: Job, python: str) -> dict[str, Any]:
    """The last line of what the contender prints."""
    output = Path(job.output)
    output.mkdir(parents=True)
    path = output / "job.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [python, "-m", f"benchmarks.peers.{contender}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"{contender} with {python}: {lines[-1] if lines else done.returncode}")
    printed: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return printed


def _peak_bytes() -> int:
    """Peak of the accelerator where one was used, else of this process.

    Linux's `ru_maxrss` of a new process begins at the peak of the one that started it, so its own peak is read instead.
    """
    torch = sys.modules["torch"]
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * KIB for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
