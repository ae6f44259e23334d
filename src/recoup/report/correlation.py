"""Does CKA predict recovery? The gain in CKA against the gain in capability, over the looks of runs, whatever comes of it.

Gains are counted from a run's own start: mean debiased CKA over the blocks now − then; token KL (of all prompts, of a group)
then − now; a task's score now − then. Two kinds of points:

- looks: what a probe saw while a run trained (`recover/probe.jsonl`), the start left out, which is nought by construction;
- before and after: one point a run, from its two diagnoses and its evaluation.

How the step is partialled out, and how the intervals are made, is said in `partial.py`. Before and after, the step is the length
of the repair, and what is taken out over runs is a line.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic import ValidationError

from recoup.errors import DataError
from recoup.report.partial import MEASURES, Rows, estimates_of
from recoup.report.words import DASH, counted, interval
from recoup.results import DiagnoseResult, Estimate, EvaluateResult, ProbeRecord, Record, RecoverResult, Result
from recoup.run_folder import RunFolder, read_jsonl, result_path

ALL = "all injuries"
MIN_LOOKS = 6  # of a run after its start: a curve takes four degrees of freedom, and of one any correlation is 1 or −1
MIN_RUNS = 4  # for before and after, where a line takes two
ENOUGH_RUNS = 10  # to draw whole runs: fewer are too often the same ones

R = TypeVar("R", bound=Result)
Points = Literal["looks", "before and after"]
POINTS: tuple[Points, ...] = ("looks", "before and after")
Resampled = Literal["runs", "runs, and blocks of looks in them", "blocks of looks of one run"]


class Correlation(Record):
    """The gain in CKA against the gain in one capability, for one injury. Null where there is nothing to correlate."""

    injury: str
    capability: str
    points: Points
    num_runs: int
    num_points: int
    resampled: Resampled
    pearson: Estimate | None
    spearman: Estimate | None
    partial_pearson: Estimate | None  # the step partialled out within each run
    partial_spearman: Estimate | None

    @property
    def answer(self) -> str:
        """Whether CKA tells more of this capability than the step does."""
        found = self.partial_spearman
        if found is None:
            return "cannot be told"
        if not found.excludes_zero:
            return "not shown"
        return "yes" if found.value > 0 else "no, the reverse"


@dataclass(frozen=True)
class _Run:
    """One run: its injury, and its rows of either kind by capability."""

    injury: str
    tables: Mapping[Points, Mapping[str, Rows]]


def correlate(folders: Sequence[RunFolder], seed: int = 0) -> tuple[Correlation, ...]:
    """Correlate over the runs in `folders`: for each injury, and for all where there are several.

    Args:
        folders: run folders.
        seed: of the resampling.

    Raises:
        DataError: a folder holds neither looks nor diagnoses before and after, a file is malformed, or there are too few points.
    """
    runs = [_read_run(folder) for folder in folders]
    injuries = sorted({run.injury for run in runs})
    found = []
    for injury in [*injuries, ALL] if len(injuries) > 1 else injuries:
        found += _correlations(injury, [run for run in runs if injury in (run.injury, ALL)], seed)
    if not found:
        raise DataError(
            f"{counted(len(runs), 'run')}: too few points; give runs with {MIN_LOOKS} looks after the start (set "
            f"recover.probe.every), or {MIN_RUNS} runs with diagnoses before and after"
        )
    return tuple(found)


def correlation_table(correlations: Sequence[Correlation]) -> str:
    """The correlations as a Markdown table, which reads well in a terminal too."""
    head = "| Injury | CKA against | Points | Pearson | Spearman | Pearson, step out | Spearman, step out | Beyond the step? |"
    lines = [head, "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | :--- |"]
    for row in correlations:
        points = f"{row.num_points:,} ({row.points}) of {counted(row.num_runs, 'run')}; resampled: {row.resampled}"
        estimates = (getattr(row, name) for name in MEASURES)
        cells = [DASH if estimate is None else interval(estimate) for estimate in estimates]
        lines.append(f"| {' | '.join([row.injury, row.capability, points, *cells, row.answer])} |")
    return "\n".join(lines) + "\n"


def _correlations(injury: str, runs: Sequence[_Run], seed: int) -> list[Correlation]:
    found = []
    for points in POINTS:
        for capability in dict.fromkeys(name for run in runs for name in run.tables[points]):
            rows = [run.tables[points][capability] for run in runs if capability in run.tables[points]]
            resampled, estimates = _of_looks(rows, seed) if points == "looks" else _of_ends(rows, seed)
            if estimates:
                words = {"injury": injury, "capability": capability, "points": points, "resampled": resampled}
                counts = {"num_runs": len(rows), "num_points": sum(map(len, rows))}
                found.append(Correlation(**words, **counts, **estimates))
    return found


def _of_looks(runs: list[Rows], seed: int) -> tuple[Resampled, dict[str, Estimate | None]]:
    if len(runs) >= ENOUGH_RUNS:
        return "runs", estimates_of(runs, bend=True, block=None, seed=seed)
    # n^(1/3) is the order of the block length that is best for an interval (Hall, Horowitz and Jing 1995)
    block = math.ceil(np.mean([len(run) for run in runs]) ** (1 / 3))
    words: Resampled = "runs, and blocks of looks in them" if len(runs) > 1 else "blocks of looks of one run"
    return words, estimates_of(runs, bend=True, block=block, seed=seed)


def _of_ends(runs: list[Rows], seed: int) -> tuple[Resampled, dict[str, Estimate | None]]:
    """All runs are one stratum of a point each, which are drawn one by one; nothing where they are too few."""
    enough = len(runs) >= MIN_RUNS
    return "runs", estimates_of([np.concatenate(runs)], bend=False, block=1, seed=seed) if enough else {}


def _read_run(folder: RunFolder) -> _Run:
    looks, ends = _looks(folder), _ends(folder)
    if not looks and not ends:
        raise DataError(
            f"{folder.root}: holds neither {MIN_LOOKS} looks after the start (recover/probe.jsonl) nor diagnoses before and "
            "after; give run folders, and set recover.probe.every for looks"
        )
    return _Run(_injury(folder.config), {"looks": looks, "before and after": ends})


def _looks(folder: RunFolder) -> dict[str, Rows]:
    """By capability, the looks after the start, if enough; of two at one step the later counts: the run had gone back."""
    path = folder.recover / "probe.jsonl"
    try:
        read = [ProbeRecord.model_validate(row) for row in read_jsonl(path)] if path.is_file() else []
    except ValidationError as error:
        raise DataError(f"{path}: a line is not a look of a probe: {' '.join(str(error).split())}") from None
    by_step = {record.step: record for record in read}
    if not by_step:
        return {}
    start, *rest = (by_step[step] for step in sorted(by_step))
    cka, tables = _mean(start.linear_cka), {}
    for name, level in _levels(start).items():
        rows = [(look.step, _mean(look.linear_cka) - cka, _levels(look).get(name, math.nan) - level) for look in rest]
        table = np.array(rows, dtype=float).reshape(-1, 3)
        tables[name] = table[np.isfinite(table).all(axis=1)]
    return {name: table for name, table in tables.items() if len(table) >= MIN_LOOKS}


def _levels(look: ProbeRecord) -> dict[str, float]:
    """By capability, what is better when higher."""
    groups = {f"token KL of {name}": -value for name, value in look.groups.items()}
    return {"token KL": -look.token_kl_nats.value, **groups, **look.tasks}


def _ends(folder: RunFolder) -> dict[str, Rows]:
    """By capability, the one point of a run that was diagnosed before and after."""
    before, after = _read(DiagnoseResult, folder.diagnose("before")), _read(DiagnoseResult, folder.diagnose("after"))
    if before is None or after is None:
        return {}
    repair, proof = _read(RecoverResult, folder.recover), _read(EvaluateResult, folder.evaluate)
    cka = _mean([layer.linear_cka for layer in after.layers]) - _mean([layer.linear_cka for layer in before.layers])
    gains = {"token KL": before.tokens.token_kl_nats.value - after.tokens.token_kl_nats.value}
    damaged = {group.group: group.tokens.token_kl_nats.value for group in before.groups}
    for group in after.groups:
        if group.group in damaged:
            gains[f"token KL of {group.group}"] = damaged[group.group] - group.tokens.token_kl_nats.value
    gains |= {task.task: task.gain.value for task in (proof.tasks if proof else ()) if task.gain is not None}
    points = {name: np.array([[repair.steps if repair else 0, cka, gain]], dtype=float) for name, gain in gains.items()}
    return {name: point for name, point in points.items() if np.isfinite(point).all()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _read(kind: type[R], stage: Path) -> R | None:
    path = result_path(stage)
    return kind.read(path) if path.is_file() else None


def _injury(config: Path) -> str:
    """What was done to the model, from the run's config: the steps' types, quantization with its format."""
    try:
        tree: Any = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        steps = [(step["type"], step.get("format"), step.get("bits")) for step in tree.get("degrade") or ()]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        raise DataError(f"{config}: not the config of a run") from None
    return (
        " → ".join(" ".join([kind, f"{form}{bits or ''}"] if form else [kind]) for kind, form, bits in steps)
        or "unknown"
    )
