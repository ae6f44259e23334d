"""End to end: recoup's recover stage against TRL 1.16, the same student, prompts, batch, completion length and dtypes.

- frozen teacher: `DistillationTrainer`, as it comes (gradient checkpointing) and without gradient checkpointing;
- moving average that sees demonstrations: `SDFTTrainer`.

Weights are fp32, compute is bf16, the divergence is forward KL over the whole vocabulary. Every measurement is a process of its
own; the contenders take turns. Peak memory is the process's (or the accelerator's, on CUDA). The first step is not counted.

Run: `python -m benchmarks.end_to_end --peer-python PATH`, where PATH is a Python that has trl 1.16 and its dependencies.
Settings of the recover stage can follow, such as `micro_batch_size=4`. On an H100: `--shape qwen2.5-3b --tokens 256 --batch 32`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Cost, Job, measure
from benchmarks.peers.models import SHAPES, make_models, make_prompts
from recoup.config_file import settings_tree

MB = 1e6
Contender = tuple[str, str, dict[str, Any]]  # how it is called, its driver, its settings


def contenders(prompts: str, count: int, own: dict[str, Any]) -> dict[str, list[Contender]]:
    """By case: recoup first, then its peers."""
    demonstrated = {"prompts": prompts, "num_prompts": count, "teacher": "ema", "demonstration": True}
    return {
        "frozen": [
            ("recoup", "recoup_recover", own),
            ("TRL DistillationTrainer", "trl_distillation", {}),
            ("TRL without gradient checkpointing", "trl_distillation", {"gradient_checkpointing": False}),
        ],
        "sdft": [
            ("recoup, EMA and demonstrations", "recoup_recover", {"terms": [demonstrated], **own}),
            ("TRL SDFTTrainer", "trl_sdft", {}),
        ],
    }


def compare(case: list[Contender], job: Job, repeats: int, peer_python: str) -> None:
    """Print what each contender of a case costs, and how ours compares."""
    costs: dict[str, list[Cost]] = {name: [] for name, _, _ in case}
    for repeat in range(repeats):
        for name, driver, settings in case:
            output = f"{job.output}/{len(costs[name])}-{name}"
            python = sys.executable if driver.startswith("recoup") else peer_python
            own = Job(**{**vars(job), "output": output, "settings": settings, "seed": repeat})
            costs[name].append(measure(driver, own, python))
    ours = costs[case[0][0]]
    for name, _, _ in case:
        theirs = costs[name]
        speed, memory = _speed(theirs), _peak(theirs)
        seconds = statistics.median(second for cost in theirs for second in cost.seconds)
        words = f"  {name}: {seconds:.2f} s a step, {speed:.1f} tokens/s, {memory / MB:,.0f} MB"
        if theirs is not ours:
            words += f": ours is {_speed(ours) / speed:.2f} times as fast, in {_peak(ours) / memory:.2f} of the memory"
        print(words, flush=True)


def _speed(costs: list[Cost]) -> float:
    return statistics.median(cost.tokens_per_second for cost in costs)


def _peak(costs: list[Cost]) -> float:
    return statistics.median(cost.peak_bytes for cost in costs)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="any causal model; also gives the tokenizer of --shape")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead of the model's")
    parser.add_argument("--case", choices=("frozen", "sdft"), nargs="+", default=["frozen", "sdft"])
    parser.add_argument("--batch", type=int, nargs="+", default=[12, 32])
    parser.add_argument("--tokens", type=int, default=48, help="completion length")
    parser.add_argument("--steps", type=int, default=4, help="with the first, which is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of recoup's recover stage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recoup-benchmark-") as root:
        folder = Path(root)
        model, teacher, student = make_models(folder, options.model, options.shape)
        for batch in options.batch:
            prompts = folder / f"prompts{batch}.jsonl"
            count = len(make_prompts(prompts, model, batch * (options.steps + 2)))
            for name in options.case:
                print(f"{name}, {batch} prompts of {options.tokens} tokens:", flush=True)
                job = Job(
                    student=str(student),
                    teacher=str(teacher),
                    prompts=str(prompts),
                    output=str(folder / f"{name}{batch}"),
                    batch=batch,
                    tokens=options.tokens,
                    steps=options.steps,
                )
                case = contenders(str(prompts), count, settings_tree(options.settings))[name]
                compare(case, job, options.repeats, options.peer_python)


if __name__ == "__main__":
    main()
