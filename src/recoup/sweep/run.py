"""Carry out a sweep: its runs one by one, or several at a time, and a leaderboard that is true after each.

A run is finished when its evaluation is; the same sweep started again goes on with what is not, and with what failed. One that
fails is noted, and the others go on.

    NAME/                the sweep's folder
      sweep.yaml         its config
      configs/RUN.yaml   each run's resolved config
      logs/RUN.txt       what each run said
      RUN/               each run's folder, as of `recoup run`
      result.json        the leaderboard; leaderboard.md and leaderboard.html for people
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from recoup.config.sweep import Sweep
from recoup.config_file import dump_config
from recoup.errors import DataError, RecoupError, RunFolderError
from recoup.progress import Progress, silent
from recoup.report import write_leaderboard
from recoup.report.words import counted
from recoup.results.sweep import SweepResult
from recoup.run_folder import RunFolder, alone_in, result_path, write_text
from recoup.sweep.expand import Plan, PlannedRun, expand
from recoup.sweep.launch import Job, Launch, ProcessJob
from recoup.sweep.leaderboard import Leaderboard
from recoup.sweep.proof import finished
from recoup.sweep.share import same_first_injury, share
from recoup.sweep.table import leaderboard_markdown
from recoup.sweep.weights import drop_damaged_models, drop_repaired_models

POLL_SECONDS = 0.2  # between looks at the runs under way
MINUTE, HOUR = 60, 3600


def run(sweep: Sweep, folder: Path, progress: Progress = silent, launch: Launch | None = None) -> SweepResult:
    """Carry out every run that is not finished; `result.json` and `leaderboard.md` follow each.

    Args:
        sweep: what to run.
        folder: of the sweep; each run gets a folder in it.
        progress: is told how many runs are done.
        launch: starts a run; null: as a process of its own.

    Returns:
        The leaderboard, with the runs that failed and those that were impossible.

    Raises:
        ConfigError: the settings of a run are wrong; nothing was started.
        RunFolderError: the folder cannot be written, holds a run with another config, or another process is at work in it;
            nothing was started.
        KeyboardInterrupt: Ctrl-C; the runs under way were stopped, and go on where they stopped.
    """
    plan = expand(sweep)
    with alone_in(folder):
        return _carry_out(sweep, plan, folder, progress, launch or partial(ProcessJob, workers=sweep.workers))


def _carry_out(sweep: Sweep, plan: Plan, folder: Path, progress: Progress, launch: Launch) -> SweepResult:
    _check_configs(plan, folder)
    write_text(folder / "sweep.yaml", yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False))
    sitting = _Sitting(sweep, plan, folder, progress, launch)
    try:
        sitting.work()
    finally:
        for _, job in sitting.jobs.values():
            job.stop()
    return sitting.write()


def _check_configs(plan: Plan, folder: Path) -> None:
    """Records of another config would be taken for this one's."""
    for planned in plan.runs:
        known = RunFolder(folder / planned.name).config
        if known.is_file() and known.read_text(encoding="utf-8") != dump_config(planned.config):
            raise RunFolderError(
                f"{known.parent}: holds a run with other settings than this sweep's; choose another --output, or remove it"
            )


@dataclass
class _Sitting:
    """One sitting of a sweep, from its start until it is done or stopped."""

    sweep: Sweep
    plan: Plan
    folder: Path
    progress: Progress
    launch: Launch
    jobs: dict[int, tuple[PlannedRun, Job]] = field(default_factory=dict)  # by worker
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaderboard = Leaderboard(self.sweep, self.plan, self.folder)
        self.began = time.monotonic()
        self.seconds_before = _seconds_before(result_path(self.folder))
        self.waiting = [planned for planned in self.plan.runs if not self.done(planned)]
        self.done_before = len(self.plan.runs) - len(self.waiting)

    def done(self, planned: PlannedRun) -> bool:
        return finished(RunFolder(self.folder / planned.name))

    def work(self) -> None:
        """Until nothing waits and nothing is under way."""
        while self.waiting or self.jobs:
            ended, started = self.settle(), self.start()
            if ended or started:
                self.tell()
            else:
                time.sleep(POLL_SECONDS)
        if not self.sweep.keep_weights and not self.failed:
            drop_damaged_models(self.plan.runs, self.folder)

    def start(self) -> bool:
        """Give each idle worker a run that may start; whether any left the queue."""
        before = len(self.waiting)
        idle = [worker for worker in range(self.sweep.workers) if worker not in self.jobs]
        for worker in idle:
            planned = next(self.ready(), None)
            if planned is None:
                break
            self.waiting.remove(planned)
            try:
                self.jobs[worker] = planned, self.begin(planned, worker)
            except RecoupError as error:
                self.failed[planned.name] = " ".join(str(error).split())
        return len(self.waiting) < before

    def ready(self) -> Iterator[PlannedRun]:
        """Runs whose start would do no work that one under way is doing; those whose baseline failed are given up."""
        under_way = [planned for planned, _ in self.jobs.values()]
        for planned in list(self.waiting):
            if planned.baseline in self.failed:
                self.waiting.remove(planned)
                self.failed[planned.name] = f"not tried, since {planned.baseline} failed"
            elif planned.baseline is None:
                if not any(same_first_injury(planned.config, other.config) for other in under_way):
                    yield planned
            elif planned.baseline not in {other.name for other in (*under_way, *self.waiting)}:
                yield planned

    def begin(self, planned: PlannedRun, worker: int) -> Job:
        config = self.folder / "configs" / f"{planned.name}.yaml"
        write_text(config, dump_config(planned.config))
        share(planned, self.plan.runs, self.folder)
        return self.launch(config, RunFolder(self.folder / planned.name), worker)

    def settle(self) -> bool:
        """Take note of the runs that have ended."""
        over = [worker for worker, (_, job) in self.jobs.items() if job.ended()]
        for worker in over:
            planned, job = self.jobs.pop(worker)
            wrong = job.failure() or (None if self.done(planned) else "ended without a result")
            if wrong is not None:
                self.failed[planned.name] = wrong
            elif not self.sweep.keep_weights:
                drop_repaired_models(planned, self.plan.runs, self.folder)
        if over:
            self.write()
        return bool(over)

    def write(self) -> SweepResult:
        """The leaderboard of what is done."""
        seconds = self.seconds_before + time.monotonic() - self.began
        result = self.leaderboard.result(self.failed, seconds)
        write_text(result_path(self.folder), result.model_dump_json(indent=2) + "\n")
        write_text(self.folder / "leaderboard.md", leaderboard_markdown(result))
        write_leaderboard(result, self.folder / "leaderboard.html")
        return result

    def tell(self) -> None:
        every, left = len(self.plan.runs), len(self.waiting) + len(self.jobs)
        now = ", ".join(planned.name for planned, _ in self.jobs.values())
        words = [now if left else "done", self.time_left(left), f"{len(self.failed)} failed" if self.failed else ""]
        self.progress(f"sweep: {'; '.join(word for word in words if word)}", every - left, every)

    def time_left(self, left: int) -> str:
        """From the runs that ended in this sitting, all counting the same."""
        ended = len(self.plan.runs) - self.done_before - left
        if not ended or not left:
            return ""
        seconds = (time.monotonic() - self.began) / ended * left
        if seconds < HOUR:
            return f"about {counted(max(1, round(seconds / MINUTE)), 'minute')} left"
        return f"about {seconds / HOUR:.1f} hours left"


def _seconds_before(path: Path) -> float:
    """Of earlier sittings."""
    try:
        return SweepResult.read(path).seconds
    except DataError:
        return 0.0
