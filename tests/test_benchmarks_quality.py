"""The comparison at equal cost: budgets, the schedule that peers are given, and who has left the structure."""

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.peers.job import Job, Spent, learning_rate
from benchmarks.peers.referee import Outcome, Referee, Score, difference, left_structure, mean
from benchmarks.quality import OURS, Run, spread

import recoup
from recoup.evaluate.fidelity import teacher_values
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.training import optimizer

INT3 = {"format": "int", "bits": 3, "group_size": 16, "symmetric": False}


def job(**settings: Any) -> Job:
    return Job("student", "teacher", "prompts", "output", batch=4, tokens=8, steps=10_000, **settings)


def run(seconds: float, tokens: int) -> Run:
    score = Score(np.zeros(1), np.zeros(1))
    return Run(Spent(1, tokens, seconds, "checkpoint"), Outcome(score, 0, 0, score))


def test_share_of_a_budget_by_hand() -> None:
    assert job(budget_tokens=400).share(100, 7.0) == 0.25
    assert job(budget_seconds=20.0).share(100, 5.0) == 0.25
    assert job(budget_tokens=400, budget_seconds=10.0).share(100, 5.0) == 0.5  # what is further spent decides
    assert job().share(100, 5.0) == 0
    assert not job().has_budget


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.1), (2, 0.15), (9, 0.5), (20, 0.99), (21, 1.2)])
def test_peers_get_recoups_schedule(step: int, share: float) -> None:
    schedule = optimizer.Schedule(10_000, 2, 3e-4, 0.1)
    own = learning_rate(job(learning_rate=3e-4, warmup=2, budget_tokens=1), step, share)
    assert math.isclose(own, optimizer.learning_rate(schedule, step, share), rel_tol=1e-6)


def test_trl_stops_with_the_step_nearest_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", ModuleType("trl"))
    from benchmarks.peers.trl_steps import Steps

    # 4 completions of 8 tokens: 32 a step. 64 + 16 < 100 goes on; 96 + 16 >= 100 stops, 4 short where 28 too many were next
    steps = Steps(job(budget_tokens=100, learning_rate=2.0))
    group: dict[str, float] = {}
    optimizer, control = SimpleNamespace(param_groups=[group]), SimpleNamespace(should_training_stop=False)
    state, rates = SimpleNamespace(log_history=[], global_step=0), []
    steps.on_train_begin()
    for step in range(3):
        assert not control.should_training_stop
        state.global_step = step
        steps.on_step_begin(None, state, control, optimizer=optimizer)
        rates.append(group["lr"])
        steps.on_step_end()
        state.log_history.append({"loss": 1.0, "completions/mean_length": 8.0})
        steps.on_log(None, state, control, logs=state.log_history[-1])
    assert control.should_training_stop
    # 0.1 of the peak and a cosine over the rest: 2 (0.1 + 0.9 (1 + cos(pi share)) / 2), at shares 0, 0.32 and 0.64
    assert rates == pytest.approx([2.0, 1.5823, 0.7168], abs=1e-4)


def test_equal_means_within_five_percent_in_every_seed() -> None:
    near = {OURS: run(100.0, 900), "peer": run(104.0, 500)}
    assert spread([near], "seconds") == "100 to 104 seconds, within 5%: yes"
    assert spread([near], "tokens") == "500 to 900 tokens, within 5%: NO"
    # seeds may differ from each other, contenders of a seed may not
    later = {OURS: run(50.0, 1), "peer": run(52.0, 1)}
    assert spread([near, later], "seconds").endswith("yes")
    assert spread([near, {**later, "peer": run(53.0, 1)}], "seconds").endswith("NO")


def test_differences_are_paired() -> None:
    # two seeds, three prompts; the second is worse by exactly 0.1 everywhere, however much prompts and seeds differ
    first = [np.array([0.1, 0.5, 0.9]), np.array([0.3, 0.7, 1.1])]
    found = difference([scores + 0.1 for scores in first], first)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert mean(first).value == pytest.approx(0.6)


def test_who_has_left_the_grid(tiny_model: Path, tmp_path: Path) -> None:
    damaged = load(
        recoup.degrade(model=str(tiny_model), method="quantize", output=tmp_path / "int3", **INT3).checkpoint
    )
    names = sorted(damaged.structure.constraints)
    teacher = load(str(tiny_model))
    prompts = [list(b"one"), list(b"two")]
    referee = Referee(teacher_values(teacher, sample(teacher, prompts, Sampling(4, 1.0))), damaged.structure, INT3)
    before = referee.score(damaged)
    assert left_structure(damaged, damaged.structure) == ()
    # a trainer that knows of no structure writes none, and moves one weight of one matrix
    with torch.no_grad():
        damaged.model.get_parameter(names[0])[0, 1] += 1e-3
    damaged.model.save_pretrained(tmp_path / "moved")
    damaged.tokenizer.save_pretrained(tmp_path / "moved")
    outcome = referee.judge(str(tmp_path / "moved"), tmp_path / "rounded")
    assert (outcome.num_off, outcome.num_constrained) == (1, len(names))
    assert (tmp_path / "rounded" / "checkpoint" / "structure.json").is_file()
    assert outcome.score.kl_P.shape == before.kl_P.shape == (2,)
    assert outcome.rounded.kl_P.mean() == pytest.approx(before.kl_P.mean(), rel=0.1)
    # the reference itself: no KL, every token alike
    itself = referee.score(teacher)
    assert itself.kl_P.sum() == pytest.approx(0, abs=1e-9)
    assert itself.top1_P.mean() == pytest.approx(1)
