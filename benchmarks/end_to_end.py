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
from benchmarks.peers.recoup_recover import merged
from recoup.config_file import settings_tree

MB = 1e6
AHEAD = 4  # steps
Contender = tuple[str, str, dict[str, Any]]  # how it is called, its driver, its settings


def contenders(prompts: str, count: int, own: dict[str, Any]) -> dict[str, list[Contender]]:
    """By case: recoup strictly on-policy and with four steps' rollouts drawn at once, then its peers."""
    demonstrated = {"prompts": prompts, "num_prompts": count, "teacher": "ema", "demonstration": True}
    ahead = merged(own, {"rollout": {"ahead": AHEAD}})
    return {
        "frozen": [
            ("recoup, strictly on-policy", "recoup_recover", own),
            (f"recoup, {AHEAD} steps drawn at once", "recoup_recover", ahead),
            ("TRL DistillationTrainer", "trl_distillation", {}),
            ("TRL without gradient checkpointing", "trl_distillation", {"gradient_checkpointing": False}),
        ],
        "sdft": [
            ("recoup, strictly on-policy", "recoup_recover", {"terms": [demonstrated], **own}),
            (f"recoup, {AHEAD} steps drawn at once", "recoup_recover", {"terms": [demonstrated], **ahead}),
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
    ours = [name for name, _, _ in case if name.startswith("recoup")]
    for name, cost in costs.items():
        # a step that samples for several is longer than those it samples for: means within a run, medians over runs
        seconds = statistics.median(statistics.mean(one.seconds) for one in cost)
        print(f"  {name}: {seconds:.2f} s a step, {_speed(cost):.1f} tokens/s, {_peak(cost) / MB:,.0f} MB", flush=True)
    for peer in [name for name in costs if name not in ours]:
        for name in ours:
            speed, memory = _speed(costs[name]) / _speed(costs[peer]), _peak(costs[name]) / _peak(costs[peer])
            print(f"  {name} against {peer}: {speed:.2f} times as fast, {memory:.2f} of the memory", flush=True)


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
    parser.add_argument("--steps", type=int, default=AHEAD + 1, help="with the first, which is not counted")
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
