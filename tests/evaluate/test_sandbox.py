"""What a confined program can and cannot do, as a whole and layer by layer."""

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from recoup.errors import ConfigError
from recoup.evaluate import confined, sandbox
from recoup.evaluate.sandbox import Limits, Outcome, run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are run on Unix systems only")

BRIEF = Limits(cpu_seconds=1, wall_seconds=60.0, memory_bytes=1 << 28)  # a wall far off, for busy machines
ON_LINUX = sys.platform == "linux" and os.uname().machine in confined.SYSCALLS


def landlock_version() -> int:
    return (
        ctypes.CDLL(None).syscall(confined.LANDLOCK_CREATE_RULESET, None, 0, confined.LANDLOCK_VERSION)
        if ON_LINUX
        else 0
    )


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert 6 * 7 == 42",
        "import collections, copy, hashlib, itertools, json, math, random, re, statistics, string, typing\nprint(math.pi)",
        "if __name__ == '__main__':\n    raise ValueError",  # not run as the main module
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass",
        "import os\nassert 'PASSWORD' not in os.environ and not os.listdir()",  # none of our environment, an empty folder
        "print('x' * 100_000)",  # more than a pipe holds
    ],
)
def test_a_program_that_comes_to_its_end(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "swordfish")
    assert run_program(program) == Outcome(finished=True, reason="")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert False, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),  # the standard library alone
        ("input()", "EOFError: EOF when reading a line"),
        ("import os\nos._exit(0)\nassert False", "left early with exit code 0"),
        ("import sys\nsys.exit(0)", "left early with exit code 0"),
        ("raise SystemExit(3)", "left early with exit code 3"),
        ("while True: pass", "out of processor time"),
        ("x = ' ' * (1 << 34)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("while True: print('x' * 10**5)", "left early with exit code 120"),  # the output is full, the reason with it
        ("import os, threading\nthreading.Thread(target=print).start()", "RuntimeError: can't start new thread"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError: subprocess.Popen is not allowed here"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "PermissionError: socket."),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError: os.kill is not allowed here"),
        ("import os\nos.chmod('/', 0)", "PermissionError: os.chmod is not allowed here"),
        ("open('note', 'w')", "PermissionError: open is not allowed here"),
    ],
)
def test_a_program_that_does_not(program: str, reason: str) -> None:
    if "threading" in program and not ON_LINUX:
        pytest.skip("threads are stopped on Linux")
    outcome = run_program(program, BRIEF)
    assert not outcome.finished
    assert outcome.reason.startswith(reason)


def test_a_fork_bomb_that_takes_no_for_an_answer() -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert run_program(bomb, BRIEF).reason == "out of processor time"


def test_finishing_cannot_be_feigned_by_writing_everywhere() -> None:
    program = "import os\nfor fd in range(1, 30):\n    try:\n        os.write(fd, b'f' * 33)\n    except OSError:\n        pass\nos._exit(0)"
    assert not run_program(program).finished


def test_a_file_outside_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("all of it")
    for line in (f"open({str(file)!r}, 'w')", f"os.remove({str(file)!r})", f"os.truncate({str(file)!r}, 0)"):
        assert not run_program(f"import os\n{line}").finished
    assert file.read_text() == "all of it"


def test_equal_programs_end_equally() -> None:
    first, second = (run_program("raise ValueError(hash('word'), list({'a', 'b', 'c', 'd'}))") for _ in range(2))
    assert first == second
    assert first.reason.startswith("ValueError: (")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            started.append(self)

    monkeypatch.setattr(sandbox.subprocess, "Popen", Watched)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = run_program("import time\ntime.sleep(60)", Limits(wall_seconds=0.5))
    assert outcome == Outcome(finished=False, reason="out of time")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(started[0].pid, 0)


ATTEMPTS = """
import importlib.util, os, socket, subprocess, sys
spec = importlib.util.spec_from_file_location("confined", sys.argv[1])
confined = importlib.util.module_from_spec(spec)
spec.loader.exec_module(confined)
for layer in sys.argv[3:]:
    setattr(confined, layer, lambda *_: None)
confined.confine(5, 1 << 30, 1 << 20)
os.chdir(sys.argv[2])
refused = []
for attempt in (
    lambda: os.fork() or os._exit(0),
    lambda: subprocess.run(["true"]),
    socket.socket,
    socket.socketpair,
    lambda: os.kill(os.getppid(), 0),
    lambda: open("kept", "a"),
    lambda: open("new", "w"),
    lambda: os.truncate("kept", 0),
    lambda: os.rename("kept", "moved"),
    lambda: os.remove("kept"),
    lambda: os.mkdir("folder"),
    lambda: os.symlink("kept", "link"),
):
    try:
        attempt()
    except PermissionError:
        refused.append(1)
    else:
        refused.append(0)
assert open("kept").read() == "all of it"
print(refused)
"""


@pytest.mark.parametrize(
    "off",
    [
        pytest.param(
            ["deny"], marks=pytest.mark.skipif(landlock_version() < 3, reason="needs Linux 6.2"), id="kernel alone"
        ),
        pytest.param(["forbid_changing_files", "forbid_syscalls"], id="audit hook alone"),
    ],
)
def test_each_layer_refuses_by_itself(off: list[str], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("all of it")
    command = [sys.executable, *sandbox.FLAGS, "-c", ATTEMPTS, str(sandbox.CONFINED), str(tmp_path), *off]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{[1] * 12}\n", "")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_programs_run_only_where_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.check_allowed("humaneval", allow_code=True)
    with pytest.raises(ConfigError, match="allow_code: true"):
        sandbox.check_allowed("humaneval", allow_code=False)
    monkeypatch.setattr(sandbox.os, "name", "nt")
    with pytest.raises(ConfigError, match="Unix"):
        sandbox.check_allowed("humaneval", allow_code=True)
