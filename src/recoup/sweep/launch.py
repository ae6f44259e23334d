"""How a run of a sweep is carried out: a process of its own, so that memory and failures stay apart."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from recoup.run_folder import RunFolder, make_folder

STOP_SECONDS = 20.0  # a process that was asked to stop may finish writing


class Job(Protocol):
    """A run under way."""

    def ended(self) -> bool:
        """Whether it is over."""

    def failure(self) -> str | None:
        """Why it failed, in a line; none where it did not. Asked when it is over."""

    def stop(self) -> None:
        """End it, if it is not over."""


Launch = Callable[[Path, RunFolder, int], Job]  # config file, the run's folder, which worker


class ProcessJob:
    """A run as `python -m recoup run`; what it says goes to a file."""

    def __init__(self, config: Path, folder: RunFolder, worker: int, workers: int = 1) -> None:
        """Start it.

        Raises:
            RunFolderError: the file for what it says cannot be written.
        """
        self._said = make_folder(folder.root.parent / "logs") / f"{folder.root.name}.txt"
        command = [sys.executable, "-m", "recoup", "run", str(config), "--output", str(folder.root)]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603  our own command, paths as the user gave them
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=_environment(worker, workers),
            )

    def ended(self) -> bool:
        """Whether the process is over."""
        return self._process.poll() is not None

    def failure(self) -> str | None:
        """The last line on standard error, where the exit code is not 0."""
        code = self._process.returncode
        if code == 0:
            return None
        lines = self._said.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
        if code < 0:
            return f"killed by signal {-code}, as when memory runs out; last said: {last}"
        return last.removeprefix("recoup: ")

    def stop(self) -> None:
        """Interrupt the process, as Ctrl-C does; kill it when that does not end it."""
        if self.ended():
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(worker: int, workers: int) -> dict[str, str]:
    """Each worker gets one GPU, where there are any; else its share of the cores, unless the user has said how many."""
    devices = _devices()
    if devices:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)), **os.environ}


def _devices() -> list[str]:
    """GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch  # noqa: PLC0415  slow to import, and only needed to count

    return [str(number) for number in range(torch.cuda.device_count())]
