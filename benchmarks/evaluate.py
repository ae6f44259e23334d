"""Evaluation: `recoup.evaluate` against lm-eval's own HF backend, the same task definitions, items and weights, in turn.

Both sides build prompts, tokenize, run the model and grade; models, tasks and data are loaded before. Printed for every task:
median seconds, and against ours how often both find the same answer likeliest and give the same score, and how far
log-likelihoods are apart, in nats. Of a bf16 model lm-eval keeps bf16 log-probabilities (8 bits: steps of 0.06 at −10), ours
are float32, and bf16 logits differ by as much with the shape of a batch; `--dtype float32` shows both without that. Then
completions of GSM8K after eight worked examples, compared as text.

With `--batches auto` lm-eval looks for the largest batch that does not fail. That is part of its time, and for this few items
takes longer than they do.

Run: `python -m benchmarks.evaluate` (some 4 minutes on 2 cores)
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.peers import lm_eval_hf
from recoup.config import Evaluate
from recoup.evaluate import harness
from recoup.evaluate import run as evaluation
from recoup.evaluate.log_likelihood import BatchedLM
from recoup.models.load import LanguageModel, load

GENERATED = "gsm8k_cot"
T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What one side says of each item, in order."""

    scores: list[float]
    logps: list[list[float]]  # of each item's answers, nats

    def choices(self) -> list[int]:
        """The likeliest answer of each item."""
        return [logps.index(max(logps)) for logps in self.logps]


def main() -> None:
    """Print seconds, ratios and agreement, task by task."""
    options = _options()
    model = load(options.model, dtype=getattr(torch, options.dtype))
    print(f"{torch.get_num_threads()} threads, {options.dtype}, {options.limit} items a task", flush=True)
    totals: dict[str, float] = {}
    for task in options.tasks:
        for name, seconds in likelihoods(model, task, options).items():
            totals[name] = totals.get(name, 0.0) + seconds
    for name in totals:
        print(f"all tasks, {_timed(name, totals)}", flush=True)
    if options.completions:
        completions(model, options)


def likelihoods(model: LanguageModel, task: str, options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each side on one task, printed with what they found."""
    config = Evaluate(tasks=(task,), limit=options.limit)
    members = harness.load_task(task)
    items = evaluation.score(model, config).tasks[0]  # not counted: which items, and the caches of the libraries
    chosen: dict[str, list[int]] = {}
    for item in items.item_ids:
        name, _, number = item.rpartition("/")
        chosen.setdefault(name, []).append(int(number))
    tasks = {name: members[name] for name in chosen}

    def ours() -> Found:
        return Found(list(evaluation.score(model, config).tasks[0].scores), _logps(tasks))

    def theirs(lm: Any) -> Found:
        found = lm_eval_hf.evaluated(lm, tasks, chosen)
        return Found([float(item[items.metric]) for name in chosen for item in found[name]], _logps(tasks))

    ways: dict[str, Callable[[], Found]] = {"ours": ours}
    ways |= {f"lm-eval, batch {size}": partial(theirs, lm_eval_hf.backend(model, size)) for size in options.batches}
    seconds, found = in_turn(ways, options.repeats)
    for name, way in found.items():
        times = f"{task}, {_timed(name, seconds)}; {items.metric} {statistics.mean(way.scores):.3f}"
        print(times if name == "ours" else f"{times}; {_agreement(found['ours'], way)}", flush=True)
    return seconds


def completions(model: LanguageModel, options: argparse.Namespace) -> None:
    """Greedy completions: median seconds of each side, and how many texts are the same."""
    tasks, items = lm_eval_hf.gsm8k(), {GENERATED: list(range(options.completions))}

    def texts(lm: Any) -> list[str]:
        lm_eval_hf.evaluated(lm, tasks, items)
        return [str(instance.resps[0]) for instance in tasks[GENERATED].instances]

    ways: dict[str, Callable[[], list[str]]] = {"ours": partial(texts, BatchedLM(model, Evaluate().batch_tokens))}
    size = max((size for size in options.batches if size != "auto"), default=options.completions)
    ways[f"lm-eval, batch {size}"] = partial(texts, lm_eval_hf.backend(model, size))
    seconds, found = in_turn(ways, options.repeats)
    for name, way in found.items():
        same = sum(mine == other for mine, other in zip(found["ours"], way, strict=True))
        print(f"{GENERATED}, {_timed(name, seconds)}; {same} of {len(way)} texts as ours", flush=True)


def in_turn(ways: dict[str, Callable[[], T]], repeats: int) -> tuple[dict[str, float], dict[str, T]]:
    """Median seconds of each way, taken in turn, and what it found the last time."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, T] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}, found


def _timed(name: str, seconds: dict[str, float]) -> str:
    """Seconds of one side, and how they compare with ours."""
    ratio = "" if name == "ours" else f", ours is {seconds[name] / seconds['ours']:.2f} times as fast"
    return f"{name}: {seconds[name]:.2f} s{ratio}"


def _logps(tasks: dict[str, Any]) -> list[list[float]]:
    """Log-likelihoods that the last evaluation left in the tasks: of each item's answers."""
    answers: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for name, task in tasks.items():
        for instance in task.instances:
            answers.setdefault((name, instance.doc_id), []).append((instance.idx, float(instance.resps[0][0])))
    return [[logp for _, logp in sorted(found)] for found in answers.values()]


def _agreement(ours: Found, theirs: Found) -> str:
    choices = sum(mine == other for mine, other in zip(ours.choices(), theirs.choices(), strict=True))
    scores = sum(mine == other for mine, other in zip(ours.scores, theirs.scores, strict=True))
    apart = [
        abs(mine - other)
        for pair in zip(ours.logps, theirs.logps, strict=True)
        for mine, other in zip(*pair, strict=True)
    ]
    total = len(ours.scores)
    return (
        f"same likeliest answer {choices}/{total}, same score {scores}/{total}, "
        f"log p apart by {statistics.median(apart):.2g} (median), {max(apart):.2g} (most)"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tasks", nargs="+", default=["arc_easy", "hellaswag", "piqa"])
    parser.add_argument("--limit", type=int, default=40, help="items of each task")
    parser.add_argument("--completions", type=int, default=8, help="items that are answered in text; 0: none")
    parser.add_argument("--batches", nargs="+", type=_batch, default=[16, 32], help="lm-eval's batch sizes, or auto")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _batch(text: str) -> int | str:
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    main()
