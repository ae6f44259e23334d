"""Run a benchmark and keep what it printed, with commit, versions and device: results/benchmarks/NAME.json.

Run: `python -m tools.benchmark end_to_end --peer-python PATH …`; `make docs` then puts it into docs/benchmarks.md. A benchmark
that is run in several ways gets a word for each: `sdft.quality`. Paths are kept out of the record.
"""

import json
import subprocess
import sys
from pathlib import Path

from recoup.provenance import environment
from tools.evidence import RESULTS

FOLDER = RESULTS / "benchmarks"


def main() -> None:
    """Run the benchmark named on the command line."""
    name, *arguments = sys.argv[1:]
    module = f"benchmarks.{name.partition('.')[0]}"
    command = [sys.executable, "-m", module, *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise SystemExit(process.returncode)
    FOLDER.mkdir(exist_ok=True)
    shown = ["PATH" if Path(word).is_absolute() else word for word in arguments]
    record = {"command": " ".join(["python -m", module, *shown]), **environment(), "printed": lines}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def benchmark(name: str) -> str:
    """What a benchmark printed, as a block for a document."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return "Not kept yet: no run of it on a machine without other work.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    device = record["device"]
    machine = f"{device['processor']}, {device['cores']} cores" if "processor" in device else str(device)
    where = f"`{record['command']}`; {machine}; torch {record['versions']['torch']}:"
    return "\n".join([where, "", "```", *record["printed"], "```"]) + "\n"


if __name__ == "__main__":
    main()
