"""What `recoup diagnose` does: diagnosis → history → triage → one page. The stages know nothing of each other's insides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recoup.config import Diagnose, History, Triage
from recoup.config_file import parse
from recoup.diagnose.run import DiagnoseInputs
from recoup.diagnose.run import run as diagnose
from recoup.errors import ConfigError
from recoup.history.run import HistoryInputs
from recoup.history.run import run as choose_teachers
from recoup.progress import Progress, silent
from recoup.report import write_diagnosis
from recoup.results import DiagnoseResult, HistoryResult, TriageResult
from recoup.triage.run import TriageInputs
from recoup.triage.run import run as triage


@dataclass(frozen=True)
class Patient:
    """Who is examined."""

    teacher: str
    student: str
    history: Path | None = None  # a folder of checkpoints
    seed: int = 0


@dataclass(frozen=True)
class Examined:
    """What was found; null where it was not asked for."""

    diagnosis: DiagnoseResult
    history: HistoryResult | None
    triage: TriageResult | None
    page: Path


def examine(patient: Patient, settings: dict[str, Any], folder: Path, progress: Progress = silent) -> Examined:
    """Diagnose, look through the history, try what may help, and write `folder/index.html`.

    Args:
        patient: the models.
        settings: of `config.Diagnose`; under `triage` (null: no triage) and `history` those of `config.Triage` and
            `config.History`; and `chat_template`, as for `load`.
        folder: gets `result.json` and the page; `triage/` and `history/` theirs.
        progress: told of every step.

    Raises:
        ConfigError: an unknown setting; settings of a history that was not given.
        RecoupError: whatever a stage raises.
    """
    own = dict(settings)
    of_triage, of_history, template = own.pop("triage", {}), own.pop("history", {}), own.pop("chat_template", None)
    if of_history and patient.history is None:
        raise ConfigError("settings under `history` need --history, a folder of checkpoints")
    config = parse(Diagnose, own, "diagnose")
    advice = None if of_triage is None else _triage(of_triage, config)
    past = None if patient.history is None else parse(History, of_history, "diagnose: history")
    common = (patient.seed, template)

    found = diagnose(config, DiagnoseInputs(patient.teacher, patient.student, *common), folder, progress)
    chosen = advised = None
    if past is not None and patient.history is not None:
        of = HistoryInputs(patient.student, patient.history, *common)
        chosen = choose_teachers(past, of, folder / "history", progress)
    if advice is not None:
        inputs = TriageInputs(patient.teacher, patient.student, found, *common, asked=config, results=Path("results"))
        advised = triage(advice, inputs, folder / "triage", progress)
    return Examined(found, chosen, advised, write_diagnosis(folder))


def _triage(settings: dict[str, Any], asked: Diagnose) -> Triage:
    """Settings of the triage; the planned repair trains on the diagnosis's kind of prompts unless it names others."""
    plan = {"terms": [{"prompts": asked.prompts}], **settings.get("plan", {})}
    return parse(Triage, {**settings, "plan": plan}, "diagnose: triage")
