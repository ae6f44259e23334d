"""Evidence: keep a run's records (never its weights) under results/, and read them back.

Run: `python -m tools.evidence runs/demo` copies config, provenance, results, metrics and the figure to results/demo.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recoup.report import write_readme_figure
from recoup.results import DegradeResult, DiagnoseResult, EvaluateResult, RecoverResult
from recoup.run_folder import RunFolder, result_path

RESULTS = Path(__file__).parent.parent / "results"
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


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"kept {keep(Path(argument)).relative_to(RESULTS.parent)}")
