"""What on-policy self-distillation costs beside fine-tuning, and what its shortcuts cost in quality.

- `cost`: an SDFT step (sampling, a teacher that sees the row's answer, the whole vocabulary) over an SFT step (cross-entropy on
  the answers) of as many rows; the answers are as long as completions may be, and the tokens of both are printed. The published
  ratio is 4 (arXiv 2601.19897). Settings such as `rollout.ahead=4 rollout.uses=2` may follow.
- `quality`: held-out KL to the teacher after as many steps of strict on-policy, of rollouts sampled ahead, used more than once,
  or sampled while the student trains; mean over seeds, and the difference to strict with its standard error over seeds.

Every run is a process of its own. Run: `python -m benchmarks.sdft` (about 10 minutes on 2 cores), or with `--only cost`.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Cost, Job, measure
from benchmarks.peers.models import make_models, make_prompts, write_rows
from benchmarks.peers.recoup_recover import merged
from recoup.config_file import settings_tree
from recoup.data.prompts import Prompt
from recoup.evaluate.fidelity import token_damage
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample

SHORTCUTS: dict[str, dict[str, Any]] = {
    "strict on-policy": {},
    "4 steps sampled ahead": {"ahead": 4},
    "each rollout used twice": {"uses": 2},
    "each rollout used 4 times": {"uses": 4},
    "asynchronous": {"asynchronous": True},
}
HELD_OUT = 32  # prompts that quality is measured on
STRICT = "strict on-policy"


def cost(job: Job, repeats: int, teacher: str, own: dict[str, Any]) -> None:
    """Print the ratio of an SDFT step to an SFT step; the two take turns."""
    source = {"prompts": job.prompts, "num_prompts": len(job.rows())}
    terms = {
        "sdft": {**source, "demonstration": True, **({"teacher": "ema"} if teacher == "ema" else {})},
        "sft": {**source, "loss": "cross_entropy", "completions": "file"},
    }
    costs: dict[str, list[Cost]] = {name: [] for name in terms}
    for repeat in range(repeats):
        for name, term in terms.items():
            settings = merged({"terms": [term]}, own)  # how rollouts are drawn says nothing to an SFT step
            costs[name].append(measure("recoup_recover", _run(job, f"{name}{repeat}", repeat, settings)))
    # a shortcut makes the steps unequal, so steps are averaged within a run, and medians taken over runs
    seconds = {name: statistics.median(statistics.mean(one.seconds) for one in costs[name]) for name in costs}
    tokens = {name: statistics.median(statistics.mean(one.tokens) for one in costs[name]) for name in costs}
    words = ", ".join(f"{name.upper()} {seconds[name]:.2f} s for {tokens[name]:.0f} tokens" for name in costs)
    print(f"SDFT step over SFT step: {seconds['sdft'] / seconds['sft']:.2f} ({words})", flush=True)


def quality(job: Job, seeds: int, models: tuple[LanguageModel, LanguageModel], own: dict[str, Any]) -> None:
    """Print the held-out KL after each shortcut; `models` are the teacher and the student as it was."""
    teacher, student = models
    held_out = _held_out(job, teacher)
    print(f"before: {_kl(teacher, student, held_out):.4f} nats", flush=True)
    found: dict[str, list[float]] = {name: [] for name in SHORTCUTS}
    for seed in range(seeds):
        for name, rollout in SHORTCUTS.items():
            run = _run(job, f"{name}{seed}", seed, merged({"rollout": rollout}, own))
            measure("recoup_recover", run)
            found[name].append(_kl(teacher, load(f"{run.output}/checkpoint"), held_out))
    for name, values in found.items():
        differences = [value - strict for value, strict in zip(values, found[STRICT], strict=True)]
        words = f"{name}: {statistics.mean(values):.4f} nats"
        if name != STRICT:
            words += f", {statistics.mean(differences):+.4f} ± {_standard_error(differences):.4f} beside strict"
        print(words, flush=True)


def _run(job: Job, name: str, seed: int, settings: dict[str, Any]) -> Job:
    return Job(**{**vars(job), "output": f"{job.output}/{name}", "seed": seed, "settings": settings})


def _answered(job: Job, prompts: list[Prompt], teacher: LanguageModel) -> None:
    """Give the prompt file answers as long as completions may be, in the teacher's words."""
    texts = [prompt.text for prompt in prompts]
    completions = sample(teacher, [list(prompt.ids) for prompt in prompts], Sampling(job.tokens, 1.0)).completions()
    answers = [teacher.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completions]
    rows = [{"prompt": text, "answer": answer} for text, answer in zip(texts, answers, strict=True) if answer]
    write_rows(Path(job.prompts), rows)


def _held_out(job: Job, teacher: LanguageModel) -> Rollouts:
    """The teacher's answers to prompts that no one trains on."""
    prompts = make_prompts(Path(job.prompts).with_name("held_out.jsonl"), teacher, HELD_OUT, "held_out")
    return sample(teacher, [list(prompt.ids) for prompt in prompts], Sampling(job.tokens, 1.0, seed=1))


def _kl(teacher: LanguageModel, student: LanguageModel, rollouts: Rollouts) -> float:
    return token_damage(teacher, student, rollouts, num_bootstrap=2, seed=0).token_kl_nats.value


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    """Print the ratio and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--only", choices=("cost", "quality"))
    parser.add_argument("--teacher", choices=("ema", "frozen"), default="ema", help="who teaches in the SDFT step")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="completion length")
    parser.add_argument("--steps", type=int, default=8, help="a run; of `cost`, the first is not counted")
    parser.add_argument("--repeats", type=int, default=3, help="runs of `cost`")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each shortcut of `quality`")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="of the SDFT step, and of every run of `quality`"
    )
    options = parser.parse_args()
    own = settings_tree(options.settings)
    with tempfile.TemporaryDirectory(prefix="recoup-benchmark-") as root:
        folder = Path(root)
        model, teacher_folder, student_folder = make_models(folder, options.model)
        job = Job(
            student=str(student_folder),
            teacher=str(teacher_folder),
            prompts=str(folder / "prompts.jsonl"),
            output=str(folder / "runs"),
            batch=options.batch,
            tokens=options.tokens,
            steps=options.steps,
            learning_rate=options.learning_rate,
        )
        prompts = make_prompts(Path(job.prompts), model, options.batch * options.steps)
        teacher = load(job.teacher)
        _answered(job, prompts, teacher)
        if options.only != "quality":
            cost(job, options.repeats, options.teacher, own)
        if options.only != "cost":
            quality(job, options.seeds, (teacher, load(job.student)), own)


if __name__ == "__main__":
    main()
