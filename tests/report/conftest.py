"""A run folder as a finished run leaves it, with made-up numbers."""

import json
from pathlib import Path

import pytest
from markupsafe import Markup

from recoup.report import svg
from recoup.results import (
    DegradeResult,
    DiagnoseResult,
    Estimate,
    EvaluateResult,
    Generation,
    LayerDamage,
    ModelScores,
    ProbeRecord,
    RecoverResult,
    RecoverStep,
    Result,
    TaskComparison,
    TaskItems,
    TokenDamage,
)
from recoup.run_folder import RunFolder, write_json, write_text

CONFIG = """\
name: forget-then-round
model: embedded
seed: 0
degrade:
- type: sft
  train_file: $DATA/science.jsonl
- type: quantize
  bits: 3
recover:
  steps: 40
"""
PROVENANCE = {
    "command": "recoup run configs/forget.yaml",
    "commit": None,
    "uncommitted_changes": False,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "device": {"processor": "some processor", "cores": 2},
    "seed": 0,
}
NUM_LAYERS = 30
NUM_STEPS = 40
SWITCH = 15


def around(value: float, half_width: float) -> Estimate:
    return Estimate(value=value, low=value - half_width, high=value + half_width)


def tokens(kl: float, agreement: float, perplexity: float) -> TokenDamage:
    return TokenDamage(
        num_prompts=64,
        num_tokens=4096,
        token_kl_nats=around(kl, 0.02),
        top1_agreement=around(agreement, 0.01),
        reference_perplexity=2.5,
        student_perplexity=perplexity,
    )


def diagnosis(scale: float, kl: float) -> DiagnoseResult:
    """`scale` of the damage grows towards the last layer; layer 4 has no drift, as if its shape differed."""
    layers = tuple(
        LayerDamage(
            layer=i,
            linear_cka=1 - scale * (i + 1) / NUM_LAYERS,
            linear_cka_all_tokens=1 - scale * (i + 1) / NUM_LAYERS / 4,
            relative_drift=None if i == 4 else scale * (0.2 + 0.01 * (i % 5)),
        )
        for i in range(NUM_LAYERS)
    )
    return DiagnoseResult(
        teacher="embedded", student="degraded", tokens=tokens(kl, 0.8, 3.1), layers=layers, num_cka_tokens=1984, seconds=21
    )  # fmt: skip


def steps() -> list[RecoverStep]:
    return [
        RecoverStep(
            step=i,
            phase="off_policy" if i < SWITCH else "on_policy",
            loss=0.5 * 0.95**i + 0.02 * (i % 3),
            grad_norm=1.0,
            learning_rate=2e-5,
            num_tokens=1000,
            completion_tokens_mean=62.5,
            overlap=0.5 + 0.01 * i if i % 5 == 0 else None,
            seconds_sampling=3.0,
            seconds_teacher=0.75,
            seconds_student=2.25,
        )
        for i in range(NUM_STEPS)
    ]


def healed(task: str = "hellaswag") -> TaskComparison:
    return TaskComparison(
        task=task,
        metric="acc_norm",
        num_items=500,
        reference=around(0.43, 0.04),
        degraded=around(0.35, 0.04),
        recovered=around(0.42, 0.04),
        damage=around(-0.08, 0.03),
        gain=around(0.07, 0.03),
        remaining=around(-0.01, 0.02),
        recovered_fraction=Estimate(value=0.875, low=0.61, high=1.04),
        damage_significant=True,
        verdict="healed",
    )


def not_healed(task: str = "arc_easy") -> TaskComparison:
    return TaskComparison(
        task=task,
        metric="acc",
        num_items=1200,
        reference=around(0.55, 0.03),
        degraded=around(0.40, 0.03),
        recovered=around(0.41, 0.03),
        damage=around(-0.15, 0.03),
        gain=around(0.01, 0.02),
        remaining=around(-0.14, 0.03),
        recovered_fraction=Estimate(value=0.07, low=-0.06, high=0.2),
        damage_significant=True,
        verdict="not healed",
    )


def preserved(task: str = "piqa") -> TaskComparison:
    return TaskComparison(
        task=task,
        metric="acc_norm",
        num_items=400,
        reference=around(0.67, 0.05),
        degraded=around(0.665, 0.05),
        recovered=around(0.68, 0.05),
        damage=around(-0.005, 0.02),
        gain=around(0.015, 0.02),
        remaining=around(0.01, 0.02),
        recovered_fraction=None,
        damage_significant=False,
        verdict="preserved",
    )


def evaluation(*tasks: TaskComparison, generations: tuple[Generation, ...] = ()) -> EvaluateResult:
    return EvaluateResult(
        reference="embedded",
        tasks=tasks,
        degraded_fidelity=tokens(0.4123, 0.71, 3.9),
        recovered_fidelity=tokens(0.0871, 0.88, 2.75),
        generations=generations,
        num_bootstrap=2000,
        seconds=240,
    )


GENERATIONS = (
    Generation(
        prompt="Name three primary colours.",
        reference="Red, yellow and blue.",
        degraded="The the colours is the the of of",
        recovered="Red, blue and yellow.",
    ),
    Generation(
        prompt="Write a function that adds two numbers.",
        reference="```python\ndef add(a, b):\n    return a + b\n```\n\nCall it as `add(1, 2)`, which returns 3.",
        degraded="",
        recovered="```python\ndef add(a, b):\n    return a + b\n```",
    ),
)


def injury(method: str, summary: str) -> DegradeResult:
    return DegradeResult(
        method=method, summary=summary, source="embedded", checkpoint="model", num_parameters=134_515_008, seconds=90
    )  # fmt: skip


RECOVERY = RecoverResult(
    student="quantize",
    teachers=("embedded",),
    checkpoint="checkpoint",
    steps=NUM_STEPS,
    num_tokens=40_000,
    num_prompts=256,
    on_policy_from_step=SWITCH,
    first_loss_nats=0.5,
    last_loss_nats=0.0687,
    structure="int3 grid, 210 matrices",
    structure_exact=True,
    seconds=252,
    peak_memory_bytes=3 * 2**30,
)


def put(folder: Path, result: Result) -> None:
    write_text(folder / "result.json", result.model_dump_json())


def put_steps(folder: RunFolder) -> None:
    write_text(folder.recover / "metrics.jsonl", "".join(f"{step.model_dump_json()}\n" for step in steps()))


def probe() -> list[ProbeRecord]:
    """Six looks, twenty steps apart: KL is 1.2 times 0.7 to the k, and CKA of two layers rises."""
    return [
        ProbeRecord(
            step=20 * k,
            token_kl_nats=around(1.2 * 0.7**k, 0.05),
            top1_agreement=around(0.5 + 0.05 * k, 0.02),
            linear_cka=(0.9 + 0.01 * k, 0.7 + 0.03 * k),
            groups={},
            tasks={},
            seconds=2.1,
        )
        for k in range(6)
    ]


def put_probe(folder: RunFolder, **changes: object) -> None:
    looks = [look.model_copy(update=changes) for look in probe()]
    write_text(folder.recover / "probe.jsonl", "".join(f"{look.model_dump_json()}\n" for look in looks))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as empty frames: drawing them takes most of a page's time."""
    monkeypatch.setattr(svg, "inline", lambda figure, name, title: Markup('<svg aria-label="{}"></svg>').format(title))


@pytest.fixture
def empty(tmp_path: Path) -> RunFolder:
    """A run folder in which no stage is done."""
    folder = RunFolder(tmp_path / "a-run")
    write_text(folder.config, CONFIG)
    write_json(folder.provenance, json.loads(json.dumps(PROVENANCE)))
    return folder


@pytest.fixture
def finished(empty: RunFolder) -> RunFolder:
    """A run folder in which every stage is done."""
    put(empty.degrade("quantize"), injury("quantize", "int3, group 64, symmetric: 210 matrices"))
    put(empty.degrade("sft"), injury("sft", "1000 rows, 1 epoch"))
    put(empty.diagnose("before"), diagnosis(scale=0.3, kl=0.45))
    put(empty.diagnose("after"), diagnosis(scale=0.1, kl=0.1))
    put(empty.recover, RECOVERY)
    put_steps(empty)
    put(empty.evaluate, evaluation(healed(), not_healed(), preserved(), generations=GENERATIONS))
    return empty


def item_scores(task: str, scores: tuple[float, ...], metric: str = "acc", **fields: object) -> TaskItems:
    """Items `task/0`, `task/1`, …"""
    ids = tuple(f"{task}/{place}" for place in range(len(scores)))
    return TaskItems.model_validate({"task": task, "metric": metric, "item_ids": ids, "scores": scores, **fields})


def put_items(folder: RunFolder, state: str, *tasks: TaskItems) -> None:
    put(folder.evaluate / state, ModelScores(model=state, tasks=tasks, seconds=1.0))


def sample(completion: str, exact: float) -> dict[str, object]:
    return {"item": "tooluse/0", "prompt": "Weather?", "completion": completion, "gold": "weather()", "exact": exact}


def put_all_items(folder: RunFolder) -> None:
    """Four items: preserved, healed, newly damaged, never right; the first has its text."""
    answers = {
        "reference": ((1, 1, 1, 0), "weather()", (1, 1, 1, 1)),
        "degraded": ((1, 0, 1, 0), "wether(", (0, 1, 1, 1)),
        "recovered": ((1, 1, 0, 0), "weather()", (1, 1, 1, 0)),
    }
    for state, (scores, said, valid) in answers.items():
        task = item_scores(
            "tooluse", scores, "exact", further={"valid_json": valid}, ceilings={"exact": 0.9},
            samples=(sample(said, scores[0]),),
        )  # fmt: skip
        put_items(folder, state, task)
