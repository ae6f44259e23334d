"""Looks at a student on held-out prompts while it trains, a line of `probe.jsonl` each (settings: `config.Probe`).

A look is a small diagnosis (`yardstick`): token KL with its interval over prompts, top-1 agreement, token KL by group, CKA by
block, and benchmark scores where asked for. It changes nothing in the student and draws no random number that training
draws, so a run that is looked at takes the same steps as one that is not. What follows from it is decided in `looks`.

Several processes: process 0 looks and tells the others. Nothing here knows of the repair, so that any trainer can be looked at.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recoup.config import Evaluate, Probe, Recover, Term
from recoup.errors import ConfigError
from recoup.evaluate.fidelity import ratio_estimate
from recoup.evaluate.tasks import score_task
from recoup.models.load import LanguageModel
from recoup.recover import teachers as teaching
from recoup.recover.held_out import SEED_OFFSET, HeldOut, kept
from recoup.recover.looks import Looks, Marks
from recoup.recover.teachers import Teacher
from recoup.recover.teachers.borrowed import Borrower
from recoup.recover.yardstick import Seen, Yardstick, evaluating, look, take
from recoup.results import ProbeRecord, TaskItems
from recoup.run_folder import write_text
from recoup.training.processes import Processes

NUM_BOOTSTRAP = 2000  # as a diagnosis takes


@dataclass(frozen=True)
class Prober:
    """Looks at a student, and writes down what it sees.

    `judged`: the student is to become like the teacher, so a larger KL is damage. `yardstick` is null in processes that do not
    look.
    """

    settings: Probe
    path: Path  # of probe.jsonl
    seed: int
    processes: Processes
    judged: bool = True
    groups: tuple[str | None, ...] = ()  # of the prompts
    yardstick: Yardstick | None = None

    def due(self, looks: Looks, step: int, steps: int) -> bool:
        """Whether it is time: at the start, every so many steps, at the end; once each."""
        return looks.last != step and (step % self.settings.every == 0 or step == steps)

    def look(self, student: LanguageModel, looks: Looks, step: int) -> tuple[Looks, ProbeRecord]:
        """Look at the student after `step` optimizer steps; in every process the same.

        Raises:
            SourceError: a hidden state is NaN or infinite.
            DataError: too few tokens for CKA, or a benchmark's data cannot be had.
        """
        found: list[tuple[Looks, ProbeRecord]] = []
        self.processes.on_main(lambda: found.append(self._look(student, looks, step)))
        return self.processes.share(found[0] if found else (looks, None))  # type: ignore[return-value]  # process 0's

    def keep(self, last: int | None) -> None:
        """Drop the lines after the look at step `last`, and one that was cut off; all where there was no look."""
        if self.processes.is_main and self.path.is_file():
            *lines, _cut_off = self.path.read_text(encoding="utf-8").split("\n")
            whole = [line for line in lines if last is not None and json.loads(line)["step"] <= last]
            write_text(self.path, "".join(f"{line}\n" for line in whole))

    def _look(self, student: LanguageModel, looks: Looks, step: int) -> tuple[Looks, ProbeRecord]:
        assert self.yardstick is not None, "process 0 has the yardstick"
        began = time.perf_counter()
        seen = look(student.model, self.yardstick)
        items = self._tasks(student)
        record = ProbeRecord(
            step=step,
            token_kl_nats=ratio_estimate(seen.kl_P, seen.counts_P, num_bootstrap=NUM_BOOTSTRAP, seed=self.seed),
            top1_agreement=ratio_estimate(seen.agrees_P, seen.counts_P, num_bootstrap=NUM_BOOTSTRAP, seed=self.seed),
            linear_cka=seen.linear_cka,
            groups={
                group: float(seen.kl_P[rows].sum() / seen.counts_P[rows].sum())
                for group, rows in rows_of_groups(self.groups).items()
            },
            tasks={name: sum(task.scores) / len(task.scores) for name, task in items.items()},
            seconds=time.perf_counter() - began,
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
        return looks.after(self.settings, step, seen.token_kl, self._marks(seen, items)), record

    def _tasks(self, student: LanguageModel) -> dict[str, TaskItems]:
        settings, seed = self.settings, self.seed + SEED_OFFSET
        config = Evaluate(tasks=settings.tasks, limit=settings.limit, data=settings.data, seed=seed)
        with evaluating(student.model):
            return {name: score_task(student, name, config) for name in config.tasks}

    def _marks(self, seen: Seen, items: Mapping[str, TaskItems]) -> Marks:
        """What must not get worse: benchmarks, and the negative KL of each group's prompts, or of all prompts."""
        marks: dict[str, Sequence[float]] = {f"task {name}": task.scores for name, task in items.items()}
        if not self.judged:
            return marks
        means = (-seen.kl_P / seen.counts_P.clamp_min(1)).tolist()
        groups = {f"group {group}": rows for group, rows in rows_of_groups(self.groups).items()}
        for name, rows in (groups or {"all prompts": list(range(len(means)))}).items():
            marks[name] = tuple(means[row] for row in rows)
        return marks


def rows_of_groups(groups: Sequence[str | None]) -> dict[str, list[int]]:
    """Numbers of each group's prompts; prompts without a group are in none."""
    names = dict.fromkeys(group for group in groups if group is not None)
    return {name: [row for row, group in enumerate(groups) if group == name] for name in names}


def prober(
    config: Recover, teachers: Sequence[Teacher], seed: int, folder: Path, processes: Processes
) -> Prober | None:
    """What looks at the student of a repair; null where nothing is to. Call it before a checkpoint is laid in.

    Raises:
        ConfigError: `keep_best` or `recovered_at` where no term has a teacher that the student is to become like.
        DataError: there is no usable held-out prompt.
        RunFolderError: the folder cannot be written.
    """
    settings = config.probe
    if settings is None:
        return None
    teacher, judged = judge(config.terms, teachers)
    if not judged and (settings.keep_best or settings.recovered_at > 0):
        raise ConfigError(
            "recover.probe: no term distils a checkpoint without demonstrations, so there is nothing that the student "
            "should come closest to; set keep_best: false and recovered_at: 0"
        )
    found: list[tuple[HeldOut, Yardstick]] = []

    def prepare() -> None:
        path = folder / "probe_prompts.jsonl"
        held_out = kept(path, settings, teacher, seed, config.rollout.max_prompt_tokens)
        found.append((held_out, take(teacher, held_out.rollouts(teacher))))

    processes.on_main(prepare)
    groups = tuple(prompt.group for prompt in found[0][0].prompts) if found else ()
    by = found[0][1] if found else None
    return Prober(settings, folder / "probe.jsonl", seed, processes, judged, groups, by)


def judge(terms: Sequence[Term], teachers: Sequence[Teacher]) -> tuple[Teacher, bool]:
    """Whose distributions the student is compared with, and whether it is to become like them.

    The first teacher that a term distils as it is. Where there is none (the teachers are the student's own states, or see
    demonstrations), the first term's: then the looks say how far the student moved.
    """
    inner = [teaching.distinct([teacher])[0] for teacher in teachers]
    for term, teacher in zip(terms, inner, strict=True):
        if term.loss == "distill" and not term.demonstration and not isinstance(teacher, Borrower):
            return teacher, True
    return inner[0], False
