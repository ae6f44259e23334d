"""What every contender is given and what it prints; imports nothing but the standard library, for other environments' sake.

Run a contender: `python -m benchmarks.peers.NAME JOB.json`
"""

import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KIB = 1024


@dataclass(frozen=True)
class Job:
    """A repair that several trainers can do."""

    student: str  # folder
    teacher: str  # folder
    prompts: str  # JSON lines of `prompt` and `answer`, texts
    output: str  # folder
    batch: int
    tokens: int  # longest completion
    steps: int
    temperature: float = 0.8
    learning_rate: float = 1e-5
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # the contender's own

    def rows(self) -> list[dict[str, str]]:
        """The prompt file."""
        return [json.loads(line) for line in Path(self.prompts).read_text(encoding="utf-8").splitlines()]


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


def measure(contender: str, job: Job, python: str = sys.executable) -> Cost:
    """Let a contender do the job in a process of its own, from the repository's root.

    Raises:
        SystemExit: it failed; its last line is given.
    """
    output = Path(job.output)
    output.mkdir(parents=True)
    path = output / "job.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [python, "-m", f"benchmarks.peers.{contender}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"{contender} with {python}: {lines[-1] if lines else done.returncode}")
    return Cost(**json.loads(done.stdout.strip().splitlines()[-1]))


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
