"""recoup's recover stage. The job's settings are those of `recoup.config.Recover`; nested ones are laid over the job's."""

import json
import time
from pathlib import Path
from typing import Any

import recoup
from benchmarks.peers.job import Job, Spent, print_cost, print_spent, read_job


def main() -> None:
    """Do the job; a step ends when the stage says so, checkpoints are written after the last one only."""
    job = read_job()
    ends: list[float] = []

    def progress(label: str, _done: int, _total: int) -> None:
        if label.startswith("recover:"):
            ends.append(time.perf_counter())

    settings = merged(_settings(job), job.settings)
    result = recoup.recover(
        student=job.student,
        teacher=job.teacher,
        output=job.output,
        progress=progress,
        seed=job.seed,
        **settings,
    )
    if job.has_budget:
        print_spent(Spent(result.steps, result.num_tokens, result.seconds, result.checkpoint))
        return
    lines = (Path(job.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # a step that samples for several, and those that it samples for, count together
    period = settings["rollout"].get("ahead", 1) * settings["rollout"].get("uses", 1)
    print_cost(ends, [json.loads(line)["num_tokens"] for line in lines], period)


def _settings(job: Job) -> dict[str, Any]:
    budget = {"tokens": job.budget_tokens, "seconds": job.budget_seconds}
    return {
        "terms": [{"prompts": job.prompts, "num_prompts": len(job.rows())}],
        "steps": job.steps,
        "batch_size": job.batch,
        "learning_rate": job.learning_rate,
        "warmup_steps": job.warmup,
        "rollout": {"max_tokens": job.tokens, "temperature": job.temperature},
        "bootstrap": {"max_steps": 0},
        "checkpoint_every": job.steps,
        **({"budget": budget} if job.has_budget else {}),
    }


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `over`; a nested group keeps those that `over` does not name."""
    both = {name for name in over if isinstance(base.get(name), dict) and isinstance(over[name], dict)}
    return {**base, **over, **{name: merged(base[name], over[name]) for name in both}}


if __name__ == "__main__":
    main()
