"""A CKA term beside the divergence (2606.05682): what it changes in held-out token KL and in CKA, and what it costs.

A 3-bit student is repaired with and without the term: the same prompts, completions (the teacher's, so that every variant
trains on the same tokens), seeds and steps. Held-out KL and CKA by block are those of the stage's own looks, on prompts that
nobody trained on. Every run is a process of its own; the variants take turns. Printed are ratios to the repair by the
divergence alone: of KL, of 1 − CKA (mean and worst block), of seconds a step (without the first) and of peak memory; mean over
seeds.

Run: `python -m benchmarks.cka_term` (about 4 minutes on 2 cores), or with `--weights 0.1 1 --seeds 3 --steps 40`.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from benchmarks.peers.job import Job, measure
from benchmarks.peers.models import make_prompts
from recoup.config import Quantize
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.models.load import load

ALONE = "divergence alone"
HELD_OUT = 32  # prompts of a look
LEARNING_RATE = 1e-3  # of configs/int3.yaml: large steps, since 3 bits are far apart


@dataclass(frozen=True)
class Outcome:
    """One repair: before and after are looks, as `probe.jsonl` has them."""

    before: dict[str, Any]
    after: dict[str, Any]
    seconds: float  # a step
    peak_bytes: int

    def lost(self, worst: bool = False) -> float:
        """1 − CKA after the repair: mean over the blocks, or of the worst block."""
        values = self.after["linear_cka"]
        return 1 - (min(values) if worst else statistics.mean(values))

    @property
    def token_kl(self) -> float:
        """Held-out token KL after the repair, nats."""
        return float(self.after["token_kl_nats"]["value"])


def variants(weights: list[float]) -> dict[str, dict[str, Any] | None]:
    """Settings of the term by what they are called."""
    named: dict[str, dict[str, Any] | None] = {ALONE: None}
    for weight in weights:
        named[f"CKA term, weight {weight:g}"] = {"weight": weight}
        named[f"CKA term, {weight:g} of the divergence"] = {"weight": weight, "balance": "loss"}
    return named


def repaired(job: Job) -> Outcome:
    """Run one repair."""
    peak = measure("recoup_recover", job).peak_bytes
    looks, steps = ([*map(json.loads, _lines(job, name))] for name in ("probe.jsonl", "metrics.jsonl"))
    shutil.rmtree(job.output)  # weights and optimizer of a 135M model take 2.7 GB
    seconds = [sum(value for key, value in step.items() if key.startswith("seconds_")) for step in steps[1:]]
    return Outcome(looks[0], looks[-1], statistics.median(seconds), peak)


def report(outcomes: dict[str, list[Outcome]]) -> None:
    """Print ratios to the repair without the term, seed by seed, then averaged."""
    plain = outcomes[ALONE]
    before = plain[0].before
    start = f"KL {before['token_kl_nats']['value']:.3f} nats, CKA {statistics.mean(before['linear_cka']):.3f}"
    print(f"before: {start}, worst block {min(before['linear_cka']):.3f}", flush=True)
    for name, found in outcomes.items():
        kl, lost, worst = (
            statistics.mean(values)
            for values in zip(*((one.token_kl, one.lost(), one.lost(worst=True)) for one in found), strict=True)
        )
        words = f"KL {kl:.3f} nats, CKA {1 - lost:.3f}, worst block {1 - worst:.3f}"
        if name != ALONE:
            pairs = list(zip(found, plain, strict=True))
            ratios = {
                "KL": [one.token_kl / other.token_kl for one, other in pairs],
                "1 − CKA": [one.lost() / other.lost() for one, other in pairs],
                "worst": [one.lost(worst=True) / other.lost(worst=True) for one, other in pairs],
                "seconds": [one.seconds / other.seconds for one, other in pairs],
                "memory": [one.peak_bytes / other.peak_bytes for one, other in pairs],
            }
            words += "; times: " + ", ".join(f"{key} {statistics.mean(all_):.3f}" for key, all_ in ratios.items())
            words += " (KL by seed: " + ", ".join(f"{ratio:.3f}" for ratio in ratios["KL"]) + ")"
        print(f"{name}: {words}", flush=True)


def _lines(job: Job, name: str) -> list[str]:
    return (Path(job.output) / name).read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="any causal model")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32, help="completion length")
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="recoup-benchmark-") as root:
        folder = Path(root)
        grid = Quantize(bits=options.bits, group_size=64, symmetric=False)
        student = degrade(grid, DegradeInputs(options.model, 0), folder / "student").checkpoint
        model = load(options.model)
        train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
        count = len(make_prompts(train, model, options.batch * options.steps))
        make_prompts(held_out, model, HELD_OUT, "held_out")
        outcomes: dict[str, list[Outcome]] = {name: [] for name in variants(options.weights)}
        for seed in range(options.seeds):
            for number, (name, term) in enumerate(variants(options.weights).items()):
                settings = {
                    "terms": [{"prompts": str(train), "num_prompts": count, "completions": "teacher"}],
                    "micro_batch_size": options.batch,
                    "warmup_steps": 1,
                    "hidden_states": term,
                    "probe": {
                        "every": options.steps,
                        "prompts": str(held_out),
                        "num_prompts": HELD_OUT,
                        "max_tokens": options.tokens,
                        "keep_best": False,
                    },
                }
                job = Job(
                    student=student,
                    teacher=options.model,
                    prompts=str(train),
                    output=str(folder / f"{seed}-{number}"),
                    batch=options.batch,
                    tokens=options.tokens,
                    steps=options.steps,
                    learning_rate=LEARNING_RATE,
                    seed=seed,
                    settings=settings,
                )
                outcomes[name].append(repaired(job))
        report(outcomes)


if __name__ == "__main__":
    main()
