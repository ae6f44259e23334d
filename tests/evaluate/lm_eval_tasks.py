"""lm-eval's own task definitions over rows of our own, scored by its own model class: what ours is compared with."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from recoup.models.load import LanguageModel


def evaluated(model: LanguageModel, folder: str, task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`results` and `samples` of one task of one of lm-eval's folders."""
    import lm_eval.tasks
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    manager = lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=str(Path(lm_eval.tasks.__file__).parent / folder)
    )
    data = Dataset.from_list(rows)
    member = {"task": task, "custom_dataset": lambda **_: {"validation": data, "test": data}}
    loaded = manager.load({"group": "own_rows", "task": [member]})["tasks"]
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=2, backend="causal")
    found = evaluate(theirs, {"tasks": loaded}, bootstrap_iters=0)
    assert found is not None
    return {"results": found["results"][task], "samples": found["samples"][task]}
