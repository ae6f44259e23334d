"""Imports go one way, and what needs no torch imports none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "recoup"

# A room may import those on lower floors; rooms on one floor may import each other only where listed.
FLOORS = [
    {"errors"},
    {"config", "results", "run_folder", "progress", "divergence", "cka", "provenance"},
    {"config_file"},
    {"structure"},
    {"models"},
    {"data"},
    {"training"},
    {"degrade", "diagnose", "recover", "evaluate", "export", "plan", "repair", "report"},
    {"triage", "history", "callback", "methods"},
    {"pipeline", "api", "examine", "sweep"},
    {"show", "arguments"},
    {"cli"},
    {"__main__", "__init__"},
]
ALLOWED = {
    ("config_file", "config"), ("provenance", "config"), ("results", "errors"),
    ("diagnose", "evaluate"),  # a diagnosis measures token fidelity as the proof does
    ("recover", "diagnose"), ("recover", "evaluate"),  # a look at the student is a small diagnosis, with its statistics
    ("repair", "degrade"),  # better rounding is the degrade stage's own, taken anew
    ("export", "report"),  # a model card says what the report says
}  # fmt: skip
LIGHT = [
    "recoup",
    "recoup.config",
    "recoup.config_file",
    "recoup.results",
    "recoup.run_folder",
    "recoup.report",
    "recoup.cli",
    "recoup.show",
    "recoup.sweep.run",
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module == "recoup":
            names = [f"recoup.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("recoup.")}
    return rooms


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    for there in imported_rooms(path) - {here}:
        assert floor(there) < floor(here) or (here, there) in ALLOWED, f"{here} imports {there}"


def test_report_imports_only_records_and_paths() -> None:
    for path in (SOURCE / "report").glob("*.py"):
        assert imported_rooms(path) <= {"report", "results", "run_folder", "errors"}, path


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
