"""A diagnosis, a triage and a history in which every field is filled: made-up numbers, as an int3 model of 30 layers might give."""

import math

from recoup.results import (
    BehaviourChange,
    CapabilityScore,
    ChangedToken,
    CheckpointScores,
    ChosenTeacher,
    DiagnoseResult,
    Estimate,
    Generation,
    GroupDamage,
    HistoryResult,
    LayerDamage,
    PastPrediction,
    Pilot,
    PositionDamage,
    RepairTrial,
    TaskComparison,
    TokenDamage,
    TriageResult,
)

from .conftest import around

TEACHER, STUDENT = "embedded", "runs/int3/degrade/quantize/checkpoint"
NUM_LAYERS, NUM_HEADS = 30, 9


def tokens(kl: float, prompts: int = 32) -> TokenDamage:
    return TokenDamage(
        num_prompts=prompts,
        num_tokens=60 * prompts,
        token_kl_nats=around(kl, 0.12),
        top1_agreement=around(0.505, 0.061),
        reference_perplexity=1.99,
        student_perplexity=8.32,
    )


def layer(i: int) -> LayerDamage:
    """CKA falls from 0.997 to 0.71; sink tokens hide it from layer 12 on."""
    cka = 0.997 - 0.287 * (i / 29) ** 1.5
    return LayerDamage(
        layer=i,
        linear_cka=cka,
        linear_cka_all_tokens=0.998 if i >= 12 else cka + 0.002,
        relative_drift=0.2 + 0.004 * math.sin(i),
        teacher_layer=i,
        cka_interval=(cka - 0.01 - 0.001 * i, cka + 0.01 + 0.0005 * i),
        cka_without_massive=cka - 0.01,
        massive_dims=(308, 12) if i >= 12 else (),
        massive_share=0.98 if i >= 12 else 0.1,
        ceiling=0.9995,
        floor=0.11 + 0.002 * i,
        relative_l2=0.2 + 0.02 * i,
        procrustes=0.1 + 0.01 * i,
        teacher_rank=120 + 3 * math.sin(i / 4),
        student_rank=95 - 0.9 * i,
        attention_drift=0.25 + 0.01 * i + 0.05 * math.sin(2.1 * i),
        ffn_drift=0.3 + 0.012 * i,
        head_drift=tuple(
            0.2 + 0.01 * i + 0.5 * max(0.0, math.sin(1.7 * i + 2.3 * head)) ** 6 for head in range(NUM_HEADS)
        ),
    )


def similarity(i: int, j: int) -> float:
    return 0.9 * math.exp(-abs(i - j) / 9) * (1 - 0.007 * i) + 0.05


def task(name: str, teacher: float, student: float, significant: bool) -> TaskComparison:
    return TaskComparison(
        task=name,
        metric="acc_norm",
        num_items=100,
        reference=around(teacher, 0.095),
        degraded=around(student, 0.09),
        recovered=None,
        damage=around(student - teacher, 0.07),
        gain=None,
        remaining=None,
        recovered_fraction=None,
        damage_significant=significant,
        verdict="damaged" if significant else "unharmed",
    )


CHANGED = (
    ChangedToken(
        prompt="What is the capital of France, and what is it known for?",
        before="The capital of France is",
        token=" Paris",
        student_token=" the",
        kl_nats=7.214,
        reference_p=0.981,
        student_p=0.004,
    ),
    ChangedToken(
        prompt="Write a Python function that returns the larger of two numbers, with a docstring and a short example of its use.",
        before="Here is a function that does it:\n\n```python\ndef larger(a, b):\n    ",
        token='"""',
        student_token="\n",
        kl_nats=5.872,
        reference_p=0.913,
        student_p=0.011,
    ),
    ChangedToken(
        prompt="Explain photosynthesis to a child.",
        before="Plants make their own food.",
        token="\n\n",
        student_token=" Plants",
        kl_nats=4.02,
        reference_p=0.74,
        student_p=0.02,
    ),
    ChangedToken(
        prompt="اكتب جملة قصيرة عن البحر.",
        before="البحر واسع",
        token=" وجميل",
        student_token="،",
        kl_nats=3.3,
        reference_p=0.61,
        student_p=0.03,
    ),
)
BEHAVIOUR = (
    BehaviourChange(
        measure="completion_tokens", num_prompts=40, reference=41.3, student=62.8, difference=around(21.5, 6.1)
    ),
    BehaviourChange(measure="ended", num_prompts=40, reference=0.71, student=0.2, difference=around(-0.51, 0.14)),
    BehaviourChange(measure="repetition", num_prompts=40, reference=0.04, student=0.47, difference=around(0.43, 0.11)),
    BehaviourChange(measure="refused", num_prompts=8, reference=0.25, student=0.125, difference=around(-0.125, 0.25)),
    BehaviourChange(measure="harmless_refused", num_prompts=8, reference=0.0, student=0.0, difference=around(0, 0)),
    BehaviourChange(measure="valid_json", num_prompts=8, reference=0.5, student=0.0, difference=around(-0.5, 0.35)),
    BehaviourChange(
        measure="valid_tool_call", num_prompts=8, reference=0.25, student=0.0, difference=around(-0.25, 0.3)
    ),
)
GENERATIONS = (
    Generation(
        prompt="Name three primary colours.",
        reference="The three primary colours are red, yellow and blue.",
        degraded="The the colours is the the of of the the of of the the of of the the",
        recovered=None,
    ),
    Generation(
        prompt="Give me a JSON object with the keys name and age.",
        reference='```json\n{\n  "name": "Ada",\n  "age": 36\n}\n```',
        degraded="",
        recovered=None,
    ),
)

DIAGNOSIS = DiagnoseResult(
    teacher=TEACHER,
    student=STUDENT,
    tokens=tokens(1.304),
    layers=tuple(layer(i) for i in range(NUM_LAYERS)),
    num_cka_tokens=3904,
    num_moved_sinks=34,
    seconds=71,
    groups=(
        GroupDamage(group="chat", tokens=tokens(1.021, 12), mean_cka=0.913),
        GroupDamage(group="code", tokens=tokens(1.733, 10), mean_cka=0.871),
        GroupDamage(group="science", tokens=tokens(1.202, 10), mean_cka=None),
    ),
    positions=(
        PositionDamage(start=0, end=4, num_tokens=128, token_kl_nats=0.611, mean_cka=None),
        PositionDamage(start=4, end=16, num_tokens=384, token_kl_nats=1.122, mean_cka=0.902),
        PositionDamage(start=16, end=64, num_tokens=1408, token_kl_nats=1.433, mean_cka=0.884),
    ),
    cka_map=tuple(tuple(similarity(i, j) for j in range(NUM_LAYERS)) for i in range(NUM_LAYERS)),
    changed_tokens=CHANGED,
    behaviour=BEHAVIOUR,
    generations=GENERATIONS,
    tasks=(task("arc_easy", 0.55, 0.31, True), task("piqa", 0.67, 0.64, False)),
)

PILOT = Pilot(
    steps=6,
    num_tokens=3218,
    kl_before=around(1.304, 0.12),
    kl_after=around(1.021, 0.1),
    recovered_fraction=Estimate(value=0.78, low=0.64, high=0.88),
    planned_steps=60,
    planned_tokens=34_560,
    planned_seconds=480,
    planned_memory_bytes=5 * 2**30,
    seconds=41,
)
TRIAGE = TriageResult(
    teacher=TEACHER,
    student=STUDENT,
    verdict="re-quantize better",
    reason="Better rounding to the same 3-bit grid brings back 54% of the token KL without training.",
    evidence=(
        "Token KL 1.30 nats is far above the 0.004 of the teacher in another precision.",
        "The student is still a language model: a predictor without context is at 5.12 nats.",
        "Rounding anew gains 0.704 nats, the pilot predicts 78% for training.",
    ),
    command="recoup recover --student diagnosis/triage/repaired --teacher embedded --output repaired steps=60",
    repairs=(
        RepairTrial(
            repair="rounding",
            settings={"method": "gptq", "damping": 0.01},
            token_kl_nats=around(0.6, 0.07),
            gain=around(0.704, 0.09),
            structure="int3 grid, group 64, 210 matrices",
            checkpoint="diagnosis/triage/repaired",
            seconds=38,
        ),
        RepairTrial(
            repair="norms",
            settings={},
            token_kl_nats=around(1.18, 0.11),
            gain=around(0.124, 0.04),
            structure="int3 grid, group 64, 210 matrices",
            checkpoint=None,
            seconds=9,
        ),
        RepairTrial(
            repair="interpolate",
            settings={},
            token_kl_nats=around(1.304, 0.12),
            gain=around(0, 0),
            structure="int3 grid, group 64, 210 matrices",
            checkpoint=None,
            note="not tried: a student on a grid leaves it when its weights are mixed",
            seconds=0,
        ),
    ),
    pilot=PILOT,
    past=(
        PastPrediction(run="demo", predicted=0.81, actual=0.76),
        PastPrediction(run="prune_ffn10", predicted=0.55, actual=0.7),
    ),
    seconds=131,
)


def capability(name: str, score: float, student: float) -> CapabilityScore:
    return CapabilityScore(capability=name, score=around(score, 0.04), gain=around(score - student, 0.05))


def checkpoint(order: int, tool_use: float, science: float) -> CheckpointScores:
    scores = (capability("tooluse", tool_use, 0.41), capability("science", science, 0.62))
    return CheckpointScores(checkpoint=f"sft/checkpoint-{100 * (order + 1)}", order=order, scores=scores)


HISTORY = HistoryResult(
    student=STUDENT,
    checkpoints=(
        checkpoint(0, 0.3, 0.5),
        checkpoint(1, 0.55, 0.58),
        checkpoint(2, 0.61, 0.66),
        checkpoint(3, 0.52, 0.71),
        checkpoint(4, 0.45, 0.64),
    ),
    chosen=(
        ChosenTeacher(
            capability="tooluse", checkpoint="sft/checkpoint-300", gain=around(0.2, 0.06), significant=True, weight=0.69
        ),
        ChosenTeacher(
            capability="science",
            checkpoint="sft/checkpoint-400",
            gain=around(0.09, 0.1),
            significant=False,
            weight=0.31,
        ),
    ),
    terms=({"teacher": "sft/checkpoint-300", "prompts": "prompts.jsonl", "group": "tooluse", "weight": 0.69},),
    seconds=310,
)
