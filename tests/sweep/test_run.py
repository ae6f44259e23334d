"""A sweep carried out by a launcher that only writes records: order, failures, going on, sharing, weights."""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recoup.config import RunConfig
from recoup.config_file import load_config
from recoup.errors import ConfigError, RunFolderError
from recoup.results import DegradeResult
from recoup.results.sweep import SweepResult
from recoup.run_folder import RunFolder, result_path, write_text
from recoup.sweep import launch as launching
from recoup.sweep.launch import ProcessJob
from recoup.sweep.run import run
from tests.sweep.records import write_degrade, write_diagnosis, write_evaluation, write_recovery
from tests.sweep.sweeps import SFT, one_injury, sweep, tree

SCORES = {"arc_easy": [1, 0], "piqa": [1, 1], "tooluse": [0, 1]}


class Done:
    """A job that was over at once."""

    def __init__(self, wrong: str | None = None) -> None:
        self.wrong = wrong

    def ended(self) -> bool:
        return True

    def failure(self) -> str | None:
        return self.wrong

    def stop(self) -> None:
        raise AssertionError("it is over")


class Recorder:
    """Does every stage that is not done yet, as a run would, and counts them."""

    def __init__(self, wrong: dict[str, str] | None = None) -> None:
        self.started: list[str] = []
        self.stages: list[str] = []
        self.wrong = wrong or {}

    def __call__(self, config: Path, folder: RunFolder, worker: int) -> Done:
        name = folder.root.name
        self.started.append(name)
        if name in self.wrong:
            return Done(self.wrong[name])
        self.carry_out(load_config(config), folder)
        return Done()

    def carry_out(self, config: RunConfig, folder: RunFolder) -> None:
        states = [config.model]
        for step in config.degrade:
            if not result_path(folder.degrade(step.type)).is_file():
                self.stages.append(f"{config.name}: {step.type}")
                write_degrade(folder, step.type, states[-1])
            states.append(DegradeResult.read(result_path(folder.degrade(step.type))).checkpoint)
        if not result_path(folder.diagnose("before")).is_file():
            self.stages.append(f"{config.name}: before")
            write_diagnosis(folder, "before", states[-2], states[-1], [0.5])
        for part in ("checkpoint", "state"):
            (folder.recover / part).mkdir(parents=True)
        write_recovery(folder, config.method, states[-1])
        models = {"reference": states[-2], "degraded": states[-1], "recovered": str(folder.recover / "checkpoint")}
        for state in ("reference", "degraded"):
            if not (folder.evaluate / state / "arc_easy.json").is_file():
                self.stages.append(f"{config.name}: {state}")
        write_evaluation(folder, {state: (model, SCORES) for state, model in models.items()}, 0.1)


def test_each_thing_is_made_once(tmp_path: Path) -> None:
    work, told = Recorder(), []
    result = run(sweep(tree()), tmp_path, lambda *words: told.append(words), work)
    assert work.started == [
        "tooluse-none-seed0", "tooluse-nf4-none-seed0", "tooluse-interpolate-seed0", "tooluse-onpolicy-seed0",
        "tooluse-nf4-onpolicy-seed0",
    ]  # fmt: skip
    assert work.stages == [
        "tooluse-none-seed0: sft", "tooluse-none-seed0: before", "tooluse-none-seed0: reference",
        "tooluse-none-seed0: degraded",
        # the expert and its scores are there already
        "tooluse-nf4-none-seed0: quantize", "tooluse-nf4-none-seed0: before", "tooluse-nf4-none-seed0: degraded",
    ]  # fmt: skip
    assert [(row.injury, row.method) for row in result.rows] == [
        ("tooluse", "none"), ("tooluse", "interpolate"), ("tooluse", "onpolicy"), ("tooluse-nf4", "none"),
        ("tooluse-nf4", "onpolicy"),
    ]  # fmt: skip
    assert list(result.skipped) == ["tooluse-nf4-interpolate-seed0"]
    assert SweepResult.read(result_path(tmp_path)) == result
    assert "tooluse-nf4" in (tmp_path / "leaderboard.md").read_text()
    assert told[0] == ("sweep: tooluse-none-seed0", 0, 5)
    assert told[-1] == ("sweep: done", 5, 5)
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5]


def test_a_failure_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    wrong = {"tooluse-onpolicy-seed0": "out of memory", "tooluse-nf4-none-seed0": "no such file"}
    result = run(sweep(tree()), tmp_path, launch=Recorder(wrong))
    assert result.failed == wrong | {"tooluse-nf4-onpolicy-seed0": "not tried, since tooluse-nf4-none-seed0 failed"}
    assert [row.method for row in result.rows] == ["none", "interpolate"]
    # the same command again tries those that failed, and those alone
    again = Recorder()
    assert run(sweep(tree()), tmp_path, launch=again).failed == {}
    assert again.started == ["tooluse-nf4-none-seed0", "tooluse-onpolicy-seed0", "tooluse-nf4-onpolicy-seed0"]


def test_a_run_without_a_result_has_failed(tmp_path: Path) -> None:
    result = run(sweep(one_injury()), tmp_path, launch=lambda *_: Done())
    assert result.failed["nf4-none-seed0"] == "ended without a result"


class Killed(Recorder):
    """Ctrl-C while the third run is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = False

    def __call__(self, config: Path, folder: RunFolder, worker: int) -> Done:
        return self if len(self.started) == 2 else super().__call__(config, folder, worker)  # type: ignore[return-value]

    def ended(self) -> bool:
        raise KeyboardInterrupt

    def stop(self) -> None:
        self.stopped = True


def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        run(sweep(tree()), tmp_path, launch=killed)
    assert killed.stopped
    partly = SweepResult.read(result_path(tmp_path))  # a leaderboard of what is done
    assert [row.method for row in partly.rows] == ["none", "none"]
    rest = Recorder()
    result = run(sweep(tree()), tmp_path, launch=rest)
    assert rest.started == ["tooluse-interpolate-seed0", "tooluse-onpolicy-seed0", "tooluse-nf4-onpolicy-seed0"]
    assert rest.stages == []
    assert result.seconds > partly.seconds
    idle = Recorder()
    assert run(sweep(tree()), tmp_path, launch=idle).rows == result.rows
    assert idle.started == []


class Workers(Recorder):
    """Jobs that are over at the third look; who runs beside whom is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.now: set[str] = set()
        self.beside: list[set[str]] = []
        self.workers: list[int] = []

    def __call__(self, config: Path, folder: RunFolder, worker: int) -> Done:
        self.started.append(folder.root.name)
        self.workers.append(worker)
        self.now.add(folder.root.name)
        self.beside.append(set(self.now))
        return Slow(lambda: self.end(config, folder))

    def end(self, config: Path, folder: RunFolder) -> None:
        self.carry_out(load_config(config), folder)
        self.now.remove(folder.root.name)


class Slow(Done):
    def __init__(self, finish: Callable[[], None]) -> None:
        super().__init__()
        self.finish, self.looks = finish, 0

    def ended(self) -> bool:
        self.looks += 1
        if self.looks == 3:
            self.finish()
        return self.looks >= 3


def test_two_workers_never_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recoup.sweep.run.POLL_SECONDS", 0)
    work = Workers()
    assert run(sweep(tree(workers=2)), tmp_path, launch=work).failed == {}
    assert len(work.started) == 5
    assert max(map(len, work.beside)) == 2
    assert set(work.workers) == {0, 1}
    # the compressed expert waits for the expert; no repair starts beside its own baseline
    assert {"tooluse-none-seed0", "tooluse-nf4-none-seed0"} not in work.beside
    assert work.stages.count("tooluse-nf4-none-seed0: sft") == 0
    assert len(work.stages) == 7


def test_other_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    settings = one_injury(methods=["onpolicy"])
    run(sweep(settings), tmp_path, launch=Recorder())
    for name in ("nf4-none-seed0", "nf4-onpolicy-seed0"):
        shutil.copy(tmp_path / "configs" / f"{name}.yaml", tmp_path / name / "config.yaml")
    idle = Recorder()
    run(sweep(settings | {"seeds": [0, 1]}), tmp_path, launch=idle)  # more of the same is welcome
    assert idle.started == ["nf4-none-seed1", "nf4-onpolicy-seed1"]
    with pytest.raises(RunFolderError, match=r"nf4-none-seed0: holds a run with other settings"):
        run(sweep(one_injury(base={"recover": {"steps": 8}})), tmp_path, launch=idle)
    with pytest.raises(ConfigError, match="stepz"):
        run(sweep(one_injury(base={"recover": {"stepz": 8}})), tmp_path, launch=idle)
    assert len(idle.started) == 2


def test_weights_are_dropped(tmp_path: Path) -> None:
    teacher = {"recover": {"terms": [{"teacher": str(tmp_path / "nf4-onpolicy-seed0" / "recover" / "checkpoint")}]}}
    settings = one_injury(keep_weights=False, methods=["onpolicy", "sft_kl", "lora"])
    injuries = settings["injuries"] | {"later": {"settings": {"degrade": [SFT], **teacher}}}
    work = Recorder({"nf4-lora-seed0": "died"})
    run(sweep(settings | {"injuries": injuries}), tmp_path, launch=work)
    kept = {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.name in ("checkpoint", "state", "best")
    }
    assert kept == {
        "nf4-none-seed0/degrade/quantize/checkpoint", "later-none-seed0/degrade/sft/checkpoint",  # a run is missing yet
        "nf4-onpolicy-seed0/recover/checkpoint", "nf4-onpolicy-seed0/recover/state",  # named by another run
    }  # fmt: skip
    run(sweep(settings | {"injuries": injuries}), tmp_path, launch=Recorder())
    assert not list(tmp_path.rglob("degrade/*/checkpoint"))
    assert (tmp_path / "nf4-onpolicy-seed0" / "recover" / "checkpoint").is_dir()


def test_a_process_says_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = tmp_path / "configs" / "bad.yaml"
    write_text(config, "name: bad\nnonsense: 1\n")
    job = ProcessJob(config, RunFolder(tmp_path / "bad"), 0)
    job._process.wait(60)
    assert job.ended()
    assert "nonsense" in (job.failure() or "")
    assert not (job.failure() or "").startswith("recoup")
    job.stop()  # of what is over is nothing


def test_a_process_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho going to sleep >&2\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    job = ProcessJob(tmp_path / "x.yaml", RunFolder(tmp_path / "x"), 0)
    assert not job.ended()
    job.stop()
    assert job.ended()
    assert (job.failure() or "").startswith(f"killed by signal {int(signal.SIGINT)}")


def test_each_worker_has_a_gpu_or_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    chosen = [launching._environment(worker, 3)["CUDA_VISIBLE_DEVICES"] for worker in range(3)]
    assert chosen == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shared = launching._environment(1, 2)
    assert (shared["CUDA_VISIBLE_DEVICES"], shared["OMP_NUM_THREADS"]) == ("", "3")
    assert launching._environment(1, 9)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert launching._environment(1, 2)["OMP_NUM_THREADS"] == "4"
