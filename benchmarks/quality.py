"""What a repair is worth at equal cost: recoup's recover stage beside TRL 1.16's trainers, all scored by one piece of code.

The damaged model, the teacher, the prompts (written by the teacher), batch, completion length, divergence and the shape of the
learning rate (warm-up, then a cosine over the budget) are the same. So is temperature, 1, since TRL divides the logits of its
loss by it too. Peak learning rates are each side's own: weights that must cross the middle between two points of a grid need
a larger one than free ones; several of TRL's make as many contenders. `SDFTTrainer` knows no other teacher than the student's
moving average, which sees the teacher's answers.

- `int3`: the student of configs/demo.yaml, and recoup with that file's bootstrap and rollouts. recoup keeps the grid; TRL's
  weights leave it, so its model is scored as it is, 32 bits a weight, and rounded back onto the grid, as its user would have to.
- `noise`: an uncompressed student with noise in every matrix.

Each contender trains in a process of its own (a) for as many seconds and (b) for as many completion tokens as the slowest got
through in (a), whose run counts for (b) too, as does any within 5% of it. Loading and saving are not counted. TRL stops with
the step that ends nearest to the budget, recoup with the one that spends it. KL is KL(teacher ‖ student) a token, nats, on the
teacher's answers to held-out prompts; intervals (95%) are over these and, of several, seeds.

Run: `python -m benchmarks.quality --peer-python PATH`, where PATH is a Python that has trl 1.16 and its dependencies. Settings of
recoup's recover stage may follow, such as `bootstrap.max_steps=0`.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import recoup
from benchmarks.peers.job import Job, Spent, repair
from benchmarks.peers.models import make_models, write_rows
from benchmarks.peers.recoup_recover import merged
from benchmarks.peers.referee import Outcome, Referee, Score, difference, mean
from recoup.config_file import settings_tree
from recoup.data.prompts import load_prompts
from recoup.evaluate.fidelity import TeacherValues, teacher_values
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Sampling, sample

INT3: dict[str, Any] = {"format": "int", "bits": 3, "group_size": 64, "symmetric": False}  # configs/demo.yaml
OURS = "recoup"
PEERS = {"TRL DistillationTrainer": "trl_distillation", "TRL SDFTTrainer": "trl_sdft"}
SETTINGS: dict[str, dict[str, Any]] = {
    "int3": {"rollout": {"ahead": 2}, "bootstrap": {"overlap": 0.5, "check_every": 2, "max_steps": 6}},
    "noise": {},
}
RATES = {"int3": (1e-3, [1e-4]), "noise": (5e-5, [5e-5])}  # peaks of recoup and of its peers
MOST_STEPS = 10_000  # the budget ends a run long before
WARMUP = 2  # steps
NEAR = 1.05  # costs that count as equal


@dataclass(frozen=True)
class Contender:
    """Who repairs, and how."""

    driver: str
    python: str
    learning_rate: float
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What one contender's repair took and gave."""

    spent: Spent
    outcome: Outcome


Runs = dict[str, Run]  # by contender


class Bout:
    """Contenders, what they are given, and who judges."""

    def __init__(self, contenders: dict[str, Contender], job: Job, referee: Referee) -> None:
        self._contenders, self._job, self._referee = contenders, job, referee

    def equal_seconds(self, seed: int, seconds: float) -> Runs:
        """Everyone for so many seconds; who comes later gets no more than those before took."""
        runs: Runs = {}
        for name in self._contenders:
            most = min([seconds, *(run.spent.seconds for run in runs.values())])
            runs[name] = self._run(name, seed, budget_seconds=most)
        return runs

    def equal_tokens(self, seed: int, timed: Runs) -> Runs:
        """Everyone for the fewest completion tokens of the timed runs; a timed run that is near them is taken as it is."""
        tokens = min(run.spent.tokens for run in timed.values())
        return {
            name: run if run.spent.tokens <= NEAR * tokens else self._run(name, seed, budget_tokens=tokens)
            for name, run in timed.items()
        }

    def _run(self, name: str, seed: int, **budget: Any) -> Run:
        contender, folder = self._contenders[name], Path(self._job.output) / "repair"
        job = replace(
            self._job,
            output=str(folder),
            seed=seed,
            learning_rate=contender.learning_rate,
            settings=contender.settings,
            **budget,
        )
        spent = repair(contender.driver, job, contender.python)
        outcome = self._referee.judge(spent.checkpoint, folder / "rounded")
        shutil.rmtree(folder)
        return Run(spent, outcome)


def make_prompts(folder: Path, teacher: LanguageModel, count: int, tokens: int) -> tuple[Path, TeacherValues]:
    """Let the teacher write and answer prompts.

    Returns:
        A file of those that are trained on, with answers; and what the teacher says of its answers to the held-out ones.
    """
    written = folder / "written.jsonl"
    write_rows(written, [{"prompt": prompt.text} for prompt in load_prompts("self", teacher, count, 0)])
    train = load_prompts(str(written), teacher, count, 0, "train")
    answers = sample(teacher, [prompt.ids for prompt in train], Sampling(tokens, 1.0)).completions()
    texts = [teacher.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    path = folder / "prompts.jsonl"
    write_rows(path, [{"prompt": row.text, "answer": text} for row, text in zip(train, texts, strict=True) if text])
    held_out = load_prompts(str(written), teacher, count, 0, "held_out")
    return path, teacher_values(teacher, sample(teacher, [row.ids for row in held_out], Sampling(tokens, 1.0, seed=1)))


def contenders(options: argparse.Namespace) -> dict[str, Contender]:
    """The peers at each of their learning rates, then recoup."""
    default, peer_default = RATES[options.injury]
    rate, peer_rates = options.learning_rate or default, options.peer_learning_rate or peer_default
    peers = {
        f"{name} at {peer_rate:g}": Contender(driver, options.peer_python, peer_rate, {})
        for name, driver in PEERS.items()
        for peer_rate in peer_rates
    }
    settings = merged(SETTINGS[options.injury], settings_tree(options.settings))
    return {**peers, OURS: Contender("recoup_recover", sys.executable, rate, settings)}


def spread(runs: list[Runs], cost: str) -> str:
    """Least and most of a cost over contenders and seeds, and whether contenders were near each other in every seed."""
    by_seed = [[getattr(run.spent, cost) for run in seed.values()] for seed in runs]
    every = [value for values in by_seed for value in values]
    near = all(max(values) <= NEAR * min(values) for values in by_seed)
    return f"{min(every):,.0f} to {max(every):,.0f} {cost}, within {NEAR - 1:.0%}: {'yes' if near else 'NO'}"


def show(title: str, cost: str, runs: list[Runs]) -> None:
    """Print what each contender left for the same cost, and how it compares with ours."""
    print(f"{title}: {spread(runs, cost)}", flush=True)
    ours = [seed[OURS].outcome.score.kl_P for seed in runs]
    for name in runs[0]:
        outcomes = [seed[name].outcome for seed in runs]
        print(f"  {name}: {took([seed[name].spent for seed in runs])}; {kept(outcomes)}", flush=True)
        states = {"as it is": [one.score for one in outcomes]}
        if any(one.num_off for one in outcomes):
            states["rounded back onto the grid"] = [one.rounded for one in outcomes]
        for state, scores in states.items():
            beside = "" if name == OURS else f"; minus {OURS}: {gap([one.kl_P for one in scores], ours)}"
            print(f"    {state}: {words(scores)}{beside}", flush=True)


def took(spent: list[Spent]) -> str:
    """Means over seeds."""
    steps, tokens = fmean(one.steps for one in spent), fmean(one.tokens for one in spent)
    return f"{steps:.0f} steps, {tokens:,.0f} tokens, {fmean(one.seconds for one in spent):.1f} s"


def kept(outcomes: list[Outcome]) -> str:
    """Whether the structure is exact."""
    if outcomes[0].num_constrained == 0:
        return "no structure to keep"
    off = max(one.num_off for one in outcomes)
    return f"structure exact: {f'no, {off} of {outcomes[0].num_constrained} matrices left it' if off else 'yes'}"


def words(scores: list[Score]) -> str:
    """KL with its interval, and top-1 agreement."""
    kl, top1 = mean([score.kl_P for score in scores]), mean([score.top1_P for score in scores])
    return f"KL {kl.value:.3f} [{kl.low:.3f}, {kl.high:.3f}], top-1 {top1.value:.1%}"


def gap(theirs: list[np.ndarray], ours: list[np.ndarray]) -> str:
    """Difference of KL with its interval; above 0, ours is closer to the teacher."""
    found = difference(theirs, ours)
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="any causal model that is instruction-tuned")
    parser.add_argument("--injury", choices=SETTINGS, default="int3")
    parser.add_argument("--seconds", type=float, default=90, help="of training, a contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="completion length")
    parser.add_argument("--prompts", type=int, default=200, help="written; one in five is held out")
    parser.add_argument("--learning-rate", type=float, help="recoup's peak")
    parser.add_argument("--peer-learning-rate", type=float, nargs="+", help="TRL's peaks; each is a contender")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of recoup's recover stage")
    return parser.parse_args(arguments)


def main() -> None:
    """Print the scores."""
    options = options_of()
    everyone = contenders(options)
    with tempfile.TemporaryDirectory(prefix="recoup-benchmark-") as root:
        folder = Path(root)
        _, teacher_folder, noisy = make_models(folder, options.model)
        student, quantize = str(noisy), INT3 if options.injury == "int3" else {}
        if quantize:
            target = folder / "int3"
            student = recoup.degrade(model=str(teacher_folder), method="quantize", output=target, **quantize).checkpoint
        teacher, damaged = load(str(teacher_folder)), load(student)
        prompts, values = make_prompts(folder, teacher, options.prompts, options.tokens)
        referee = Referee(values, damaged.structure, quantize)
        print(f"{options.injury}, {len(values.rollouts.tokens_BT)} held-out prompts", flush=True)
        print(f"before: {words([referee.score(damaged)])}", flush=True)
        job = Job(
            student=student,
            teacher=str(teacher_folder),
            prompts=str(prompts),
            output=str(folder / "runs"),
            batch=options.batch,
            tokens=options.tokens,
            steps=MOST_STEPS,
            temperature=1.0,
            warmup=WARMUP,
        )
        bout = Bout(everyone, job, referee)
        timed = [bout.equal_seconds(seed, options.seconds) for seed in options.seeds]
        show("equal time", "seconds", timed)
        show("equal tokens", "tokens", [bout.equal_tokens(*pair) for pair in zip(options.seeds, timed, strict=True)])


if __name__ == "__main__":
    main()
