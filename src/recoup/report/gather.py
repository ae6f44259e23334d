"""Read the folder of a run, or of a diagnosis, into one frozen value. A stage may be missing; a file must be readable."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from recoup.errors import DataError
from recoup.results import (
    DegradeResult,
    DiagnoseResult,
    EvaluateResult,
    HistoryResult,
    ModelScores,
    ProbeRecord,
    Record,
    RecoverResult,
    RecoverStep,
    Result,
    TokenDamage,
    TriageResult,
)
from recoup.run_folder import RunFolder, read_jsonl, result_path

R = TypeVar("R", bound=Result)
Line = TypeVar("Line", bound=Record)


@dataclass(frozen=True)
class Run:
    """All that a report shows; null or empty where a stage was not run."""

    name: str
    config: str
    provenance: dict[str, Any]
    injuries: tuple[DegradeResult, ...]
    before: DiagnoseResult | None
    after: DiagnoseResult | None
    recovery: RecoverResult | None
    steps: tuple[RecoverStep, ...]
    evaluation: EvaluateResult | None
    probe: tuple[ProbeRecord, ...] = ()
    scores: Mapping[str, ModelScores] = field(default_factory=dict)  # item by item: reference, degraded, recovered
    triage: TriageResult | None = None

    @property
    def fidelity(self) -> tuple[TokenDamage | None, TokenDamage | None]:
        """Degraded and recovered, from the evaluation, else from the diagnoses."""
        if self.evaluation is not None:
            return self.evaluation.degraded_fidelity, self.evaluation.recovered_fidelity
        before = self.before.tokens if self.before else None
        return before, self.after.tokens if self.after else None


@dataclass(frozen=True)
class Diagnosis:
    """All that a diagnosis's page shows; null where a part was not asked for."""

    result: DiagnoseResult
    triage: TriageResult | None = None
    history: HistoryResult | None = None


def gather_diagnosis(folder: Path) -> Diagnosis:
    """Read what `recoup diagnose` left; a triage or a history of other models than the diagnosis's is left out.

    Raises:
        DataError: there is no diagnosis, or a file is malformed.
    """
    result = DiagnoseResult.read(result_path(folder))
    triage, history = _read(TriageResult, folder / "triage"), _read(HistoryResult, folder / "history")
    if triage is not None and (triage.teacher, triage.student) != (result.teacher, result.student):
        triage = None
    if history is not None and history.student != result.student:
        history = None
    return Diagnosis(result, triage, history)


def gather(folder: RunFolder) -> Run:
    """Read every stage that is done.

    Raises:
        DataError: no stage is done, or a file is malformed.
    """
    config = _read_text(folder.config)
    tree = _parse_config(config, folder.config)
    run = Run(
        name=str(tree.get("name") or folder.root.resolve().name),
        config=config,
        provenance=_read_provenance(folder.provenance),
        injuries=_read_injuries(folder, tree),
        before=_read(DiagnoseResult, folder.diagnose("before")),
        after=_read(DiagnoseResult, folder.diagnose("after")),
        recovery=_read(RecoverResult, folder.recover),
        steps=_read_lines(RecoverStep, folder.recover / "metrics.jsonl", "a recovery step"),
        probe=_read_lines(ProbeRecord, folder.recover / "probe.jsonl", "a look of the probe"),
        evaluation=_read(EvaluateResult, folder.evaluate),
        scores=_read_scores(folder.evaluate),
        triage=_read(TriageResult, folder.diagnose("before") / "triage"),
    )
    if not any((run.injuries, run.before, run.after, run.recovery, run.evaluation)):
        raise DataError(f"{folder.root}: no stage of a run is finished here; give the folder that `recoup run` wrote")
    return run


def _read(kind: type[R], stage: Path) -> R | None:
    path = result_path(stage)
    return kind.read(path) if path.is_file() else None


def _read_scores(stage: Path) -> dict[str, ModelScores]:
    """Of a finished evaluation: an unfinished one may hold scores of models that it does not compare."""
    if not result_path(stage).is_file():
        return {}
    found = {state: _read(ModelScores, stage / state) for state in ("reference", "degraded", "recovered")}
    return {state: scores for state, scores in found.items() if scores is not None}


def _read_injuries(folder: RunFolder, tree: dict[str, Any]) -> tuple[DegradeResult, ...]:
    """In the order of the config; a step that the config does not name comes last."""
    listed = tree.get("degrade")
    order = [step.get("type") for step in listed if isinstance(step, dict)] if isinstance(listed, list) else []
    found = sorted(path.parent.name for path in folder.root.glob("degrade/*/result.json"))
    found.sort(key=lambda name: order.index(name) if name in order else len(order))
    return tuple(DegradeResult.read(result_path(folder.degrade(name))) for name in found)


def _read_lines(kind: type[Line], path: Path, what: str) -> tuple[Line, ...]:
    rows = read_jsonl(path) if path.is_file() else []
    try:
        return tuple(kind.model_validate(row) for row in rows)
    except ValidationError as error:
        raise DataError(f"{path}: a line is not {what}: {' '.join(str(error).split())}") from None


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_read_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    return tree


def _parse_config(text: str, path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def _read_text(path: Path) -> str:
    """Empty when the file is missing."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
