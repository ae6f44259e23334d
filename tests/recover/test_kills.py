"""Killed with SIGKILL at any moment and started again in a new process, a repair ends with the weights of the unkilled one.

The processes are forked from one server that has imported torch already, so that a repair of a second can be killed twenty
times in less than a minute.
"""

import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recoup.config import Recover
from recoup.recover.run import RecoverInputs, run

KILLS, KILLS_OF_ONE_RUN = 20, 4  # every run is killed so often before it may end
STEPS = 6
SEED = 0
PATIENCE = 120  # seconds; a process that hangs fails the test

Start = Callable[..., ForkServerProcess]


def work(config: str, models: tuple[str, str], folder: Path, kill_at: int | None = None) -> None:
    """One process: the repair, from where it stands to its end, or to the `kill_at`-th change of a name on the disk."""
    torch.set_num_threads(1)
    if kill_at is not None:
        _kill_at_rename(kill_at)
    student, teacher = models

    def note(label: str, done: int, _: int) -> None:
        if label.startswith("recover:"):
            with _noted(folder).open("a") as file:
                file.write(f"{done}\n")

    run(Recover.model_validate_json(config), RecoverInputs(student, (teacher,), 0), folder, note)


def _noted(folder: Path) -> Path:
    """Where the processes of a run note how many steps are done."""
    return folder.with_suffix(".steps")


def steps_done(folder: Path) -> list[int]:
    """Every note so far, of all processes."""
    return [int(line) for line in _noted(folder).read_text().split()] if _noted(folder).exists() else []


def _kill_at_rename(number: int) -> None:
    """Kill this process just before it renames something for the `number`-th time, counted from 1."""
    renames = 0

    def count(event: str, _: object) -> None:
        nonlocal renames
        if event == "os.rename":
            renames += 1
            if renames == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@pytest.fixture(scope="module")
def start(tiny_model: Path, damaged: Path, prompt_file: Path) -> Start:
    """Start a process that repairs into a folder; it leaves a checkpoint at every second step."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    config = Recover.model_validate({
        "terms": [{"prompts": str(prompt_file), "num_prompts": 8}],
        "steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0,
        "rollout": {"max_tokens": 8, "temperature": 1.0}, "bootstrap": {"max_steps": 2, "overlap": 1.0},
        "checkpoint_every": 2,
    }).model_dump_json()  # fmt: skip

    def started(folder: Path, kill_at: int | None = None) -> ForkServerProcess:
        process = server.Process(target=work, args=(config, (str(damaged), str(tiny_model)), folder, kill_at))
        process.start()
        return process

    return started


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The unkilled run, and the seconds of one that finds torch imported, as the killed ones do."""
    root = tmp_path_factory.mktemp("unkilled")
    finish(start(root / "first"))
    began = time.monotonic()
    finish(start(root / "whole"))
    return root / "whole", time.monotonic() - began


def finish(process: ForkServerProcess) -> None:
    process.join(PATIENCE)
    assert process.exitcode == 0


def rows(folder: Path, name: str) -> list[dict]:
    """Lines of a log, but for the seconds, which differ from run to run."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def assert_same(folder: Path, whole: Path) -> None:
    expected = load_file(whole / "checkpoint" / "model.safetensors")
    actual = load_file(folder / "checkpoint" / "model.safetensors")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    for name in ("metrics.jsonl", "rollouts.jsonl", "prompts.jsonl"):
        assert rows(folder, name) == rows(whole, name), name


def test_killed_at_twenty_random_moments(start: Start, whole: tuple[Path, float], tmp_path: Path) -> None:
    unkilled, seconds = whole
    moments = random.Random(SEED)
    kills, runs, steps_seen = 0, 0, set()
    while kills < KILLS:
        folder = tmp_path / f"run{runs}"
        runs += 1
        of_this_run = 0
        while of_this_run < KILLS_OF_ONE_RUN:
            process = start(folder)
            process.join(moments.uniform(0, seconds))
            process.kill()
            process.join(PATIENCE)
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
            steps_seen.add(max(steps_done(folder), default=0))
            of_this_run += 1
        else:
            finish(start(folder))
        kills += of_this_run
        assert_same(folder, unkilled)
    assert min(steps_seen) < 2 <= max(steps_seen)  # some kills came before the first checkpoint, some after


def test_killed_before_each_rename(start: Start, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Everything that a run leaves is put in place by renaming; whichever is interrupted, the run can go on."""
    unkilled, _ = whole
    for number in itertools.count(1):
        folder = tmp_path / f"rename{number}"
        process = start(folder, number)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "result.json").exists()
        finish(start(folder))
        assert_same(folder, unkilled)
    assert number > 6  # prompts, three checkpoints, the repaired model and the result were all interrupted once


def test_a_kill_costs_one_checkpoint_at_most(start: Start, tmp_path: Path) -> None:
    for number in itertools.count(1):
        folder = tmp_path / f"rename{number}"
        process = start(folder, number)
        process.join(PATIENCE)
        if process.exitcode == 0:
            break
        before = steps_done(folder)
        finish(start(folder))
        after = steps_done(folder)[len(before) :]
        # killed at step d, the checkpoint of step d − 2 or a later one was whole
        assert not before or not after or after[0] >= before[-1] - 1, (number, before, after)
        halves = [path for path in folder.glob(".*") if path.is_dir()]
        assert not halves, "the killed process left half a checkpoint, and it stays"
