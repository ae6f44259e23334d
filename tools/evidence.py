"""Evidence: keep the records of a run or a sweep (never weights) under results/, and read them back.

Run: `python -m tools.evidence runs/demo` copies config, provenance, results, metrics and the figure to results/demo;
`python -m tools.evidence sweeps/NAME` copies a sweep's leaderboard, and each run's cost and scores, to results/sweeps/NAME.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recoup.report import draw_leaderboard, write_readme_figure
from recoup.results import DegradeResult, DiagnoseResult, EvaluateResult, RecoverResult
from recoup.results.sweep import SweepResult
from recoup.run_folder import RunFolder, result_path
from recoup.sweep.table import LEGEND

RESULTS = Path(__file__).parent.parent / "results"
SWEEPS = RESULTS / "sweeps"
KEPT = ("config.yaml", "provenance.json", "recover/metrics.jsonl")
MODEL_NAMES = {"embedded": "SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Evidence:
    """A run's records."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    injuries: tuple[DegradeResult, ...]
    before: DiagnoseResult
    after: DiagnoseResult
    repair: RecoverResult
    proof: EvaluateResult

    @property
    def cores(self) -> int:
        """Cores of the machine that made it."""
        return int(self.provenance["device"]["cores"])


def read_evidence(root: Path) -> Evidence:
    """Read the records kept in a folder of results/.

    Raises:
        DataError: one is missing or malformed.
    """
    folder = RunFolder(root)
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    config["model_name"] = MODEL_NAMES.get(config["model"], config["model"])
    return Evidence(
        name=root.name,
        config=config,
        provenance=json.loads(folder.provenance.read_text(encoding="utf-8")),
        injuries=tuple(DegradeResult.read(result_path(folder.degrade(step["type"]))) for step in config["degrade"]),
        before=DiagnoseResult.read(result_path(folder.diagnose("before"))),
        after=DiagnoseResult.read(result_path(folder.diagnose("after"))),
        repair=RecoverResult.read(result_path(folder.recover)),
        proof=EvaluateResult.read(result_path(folder.evaluate)),
    )


def keep(run: Path) -> Path:
    """Copy a finished run's records to results/, under the run's name; returns that folder."""
    target = RESULTS / run.name
    shutil.rmtree(target, ignore_errors=True)
    for path in [*(run / name for name in KEPT), *run.rglob("result.json")]:
        copy = target / path.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    write_readme_figure(RunFolder(run), target / "figure.svg")
    read_evidence(target)
    return target


def keep_sweep(sweep: Path) -> Path:
    """Copy a sweep's records to results/sweeps/, under its name: of each run provenance, cost and comparisons.

    Where the sweep was made is replaced by `sweeps/NAME`.
    """
    target = SWEEPS / sweep.name
    shutil.rmtree(target, ignore_errors=True)
    result = SweepResult.read(result_path(sweep))
    kept = [sweep / "sweep.yaml", sweep / "leaderboard.md", result_path(sweep)]
    for run in (RunFolder(sweep / name) for row in result.rows for name in row.runs):
        kept += [run.provenance, result_path(run.recover), result_path(run.evaluate)]
    for path in kept:
        copy = target / path.relative_to(sweep)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        copy.write_text(text.replace(str(sweep), f"sweeps/{sweep.name}"), encoding="utf-8")
    draw_leaderboard(result, target / "figure.svg")
    return target


def leaderboard(name: str) -> str:
    """A sweep's leaderboard, as a part of a document that says the legend itself: its headings are two levels down."""
    path = SWEEPS / name / "leaderboard.md"
    if not path.is_file():
        return "Not run yet.\n"
    lines = path.read_text(encoding="utf-8").replace(f"{LEGEND}\n\n", "").splitlines()
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in lines) + "\n"


if __name__ == "__main__":
    for argument in map(Path, sys.argv[1:]):
        kept_at = keep_sweep(argument) if (argument / "sweep.yaml").is_file() else keep(argument)
        print(f"kept {kept_at.relative_to(RESULTS.parent)}")
