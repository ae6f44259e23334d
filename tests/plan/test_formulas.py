"""Memory, time and what trains: by hand on a model small enough to count, then properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.config import Recover, Train
from recoup.config.degrade import Magnitude, Quantize
from recoup.plan import memory, speed
from recoup.plan.memory import Load, Savings, TeacherShape
from recoup.plan.record import MachineRates, MemoryPart
from recoup.plan.shapes import Activations, ModelShape, Weight
from recoup.plan.speed import Work, mean_completion_tokens
from recoup.plan.suggest import alternatives, changed
from recoup.plan.trained import Kept, Trained, kept_after, structure_bytes, trained

# an embedding of 10 × 4, a linear layer of 6 × 4 in each of two blocks, and a norm of 4
SHAPE = ModelShape(
    weights=(
        Weight("embed", 10, 4, is_vector=False, is_linear=False, block=None),
        Weight("0.linear", 6, 4, is_vector=False, is_linear=True, block=0),
        Weight("1.linear", 6, 4, is_vector=False, is_linear=True, block=1),
        Weight("norm", 4, 1, is_vector=True, is_linear=False, block=None),
    ),
    num_blocks=2,
    vocabulary=10,
    width=4,
    kv_width=8,
    attention_width=4,
)
GRID = {"0.linear": Kept(group_size=2), "1.linear": Kept(group_size=2)}
CPU = Load("cpu", compute_bytes=2, micro_batch=3, sampled_at_once=5, prompt_tokens=6, completion_tokens=4)
GPU = replace(CPU, device="cuda")
KEPT = Activations(per_token=100, per_pair=10, narrow_per_token=16)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        # 40 + 24 + 24 + 4 numbers; Adafactor keeps rows + columns 14 + 10 + 10 and the norm's 4; latents of both linears
        (Train(), Trained(92, 38, 48, 0, 92, 40, 24)),
        (Train(layers=(1,)), Trained(24, 10, 24, 0, 24, 24, 24)),
        # rank 2: A 2 × 4 and B 6 × 2 in two linears: 40 numbers; rows + columns (2 + 4) + (6 + 2) each; 48 to start from
        (Train(what="lora", lora_rank=2), Trained(40, 28, 0, 48, 48, 20, 24)),
        # 12 groups of 2 in each linear, as 6 × 2; 48 codes to multiply
        (Train(what="scales"), Trained(24, 16, 0, 48, 48, 12, 24)),
        (Train(what="norms"), Trained(4, 4, 0, 0, 4, 4, 24)),
    ],
)
def test_what_trains_by_hand(train: Train, expected: Trained) -> None:
    assert trained(SHAPE, train, GRID) == expected


def test_injuries_say_what_is_kept() -> None:
    quantized = kept_after(SHAPE, [Quantize(bits=3, group_size=64)])
    assert quantized == {"0.linear": Kept(64), "1.linear": Kept(64)}
    assert set(kept_after(SHAPE, [Quantize(embeddings=True)])) == {"embed", "0.linear", "1.linear"}
    both = kept_after(SHAPE, [Magnitude(), Quantize(format="q4_k")])
    assert both["0.linear"] == Kept(group_size=32, masked=True)
    # masks: a byte for each of 48 weights; 24 groups of 2 with 8 bytes each
    assert structure_bytes(SHAPE, kept_after(SHAPE, [Magnitude()])) == 48
    assert structure_bytes(SHAPE, GRID) == 24 * 8


def test_moments_by_hand() -> None:
    numbers = trained(SHAPE, Train(), GRID)
    assert memory.moments(numbers, "adamw") == 8 * 92
    assert memory.moments(numbers, "adafactor") == 4 * 38
    assert memory.moments(numbers, "adamw_8bit") == 187  # 2 · (1 + 4 / 256) · 92 = 186.9


def test_activations_by_hand() -> None:
    # T = 10: 100 · 10 + 10 · 10² = 2000 bytes a rollout, of two blocks; 3 rollouts
    assert memory.activations(KEPT, 2, GPU, Savings()) == 6000
    # inputs 16 · 10, and one block's 1000
    assert memory.activations(KEPT, 2, GPU, Savings(checkpointing=True)) == 3 * 1160
    assert memory.activations(KEPT, 4, GPU, Savings(offload=True)) == 3 * 1000
    # a CPU has nowhere to offload to, and keeps a tenth more
    assert memory.activations(KEPT, 2, CPU, Savings(offload=True)) == 6600


def test_teachers_by_hand() -> None:
    plain = TeacherShape("model", numbers=92, in_linears=48, num_blocks=2)
    assert memory.teacher_bytes(plain, GPU) == 184
    assert memory.teacher_bytes(replace(plain, hold="int8"), GPU) == round(2 * 44 + 48 * (1 + 4 / 1024))
    # four blocks of 24 bytes each are two at a time on the accelerator, and all of them where there is none
    assert memory.teacher_bytes(replace(plain, hold="offload", num_blocks=4), GPU) == 88 + 48
    assert memory.teacher_bytes(replace(plain, hold="offload"), CPU) == 184
    average = TeacherShape("ema", numbers=10, averaged=True)
    assert memory.teacher_bytes(average, GPU) == 10 * (4 + 2)
    assert memory.teacher_bytes(average, replace(GPU, compute_bytes=4)) == 40


def test_all_parts_by_hand() -> None:
    numbers = trained(SHAPE, Train(), GRID)
    always = memory.resident(SHAPE, numbers, 192, (TeacherShape("model", 92),), GPU)
    assert {part.name: part.num_bytes for part in always} == {
        "student, fp32": 368,
        "compute copy, bf16": 184,
        "latent copies": 192,
        "masks and scales": 192,
        "teacher model": 184,
    }
    passing = {(p.name, p.phase): p.num_bytes for p in memory.passing(SHAPE, numbers, KEPT, GPU, Savings())}
    assert passing == {
        ("adamw moments", "always"): 736,
        ("KV cache", "sampling"): 5 * 10 * 2 * 8 * 2,  # rows, tokens, blocks, keys and values, bytes
        ("next-token logits", "sampling"): 5 * 10 * (2 + 4 + 4),
        ("activations", "training"): 6000,
        ("divergence chunk", "training"): 12 * 10 * (4 + 4 + 2),  # 3 · 4 completion tokens: all in one chunk
        ("gradient being handed over", "training"): 40 * (2 + 4),
        ("gradients", "training"): 368,
        ("gradients", "optimizer"): 368,
        ("optimizer and projection scratch", "optimizer"): 24 * 24,
    }


def test_the_peak_is_the_worst_phase() -> None:
    sizes = [("always", 5), ("sampling", 7), ("training", 3), ("training", 3), ("optimizer", 1)]
    parts = tuple(MemoryPart(name="", phase=phase, num_bytes=size) for phase, size in sizes)
    assert memory.peak(parts) == (12, "sampling")


RATES = MachineRates(device="", gemm_flops=1e3, bytes_per_second=1e2)
WORK = Work(rollouts=6, prompt_tokens=6, completion_tokens=4)


def test_time_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (speed.TRAINING_EFFICIENCY, speed.SCORING_EFFICIENCY):
        monkeypatch.setitem(table, "cpu", 1.0)
    monkeypatch.setitem(speed.DECODE_OVERHEAD, "cpu", 0.5)
    # 48 numbers in blocks, 60 tokens; attention 4 · 60 tokens · 10 · 2 blocks · 4 = 19,200 operations
    assert speed.teacher_seconds(SHAPE, WORK, RATES, CPU) == pytest.approx((2 * 48 * 60 + 19_200) / 1e3)
    assert speed.teacher_seconds(None, WORK, RATES, CPU) == 0
    # both heads: 24 tokens · 40 numbers · (6 + 2)
    forward = 6 * 48 * 60 + 3 * 19_200
    assert speed.student_seconds(SHAPE, SHAPE, WORK, RATES, CPU) == pytest.approx((forward + 24 * 40 * 8) / 1e3)
    again = 8 * 48 * 60 + 4 * 19_200
    kept = replace(WORK, checkpointing=True)
    assert speed.student_seconds(SHAPE, None, kept, RATES, CPU) == pytest.approx((again + 24 * 40 * 6) / 1e3)
    # prefill 2 · 48 · 6 · 6 / 1e3 = 3.456. Two groups (6 rollouts, 5 at once) of 3 rows, 4 tokens each: weights read
    # 2 · 92 / 100 = 1.84 > products 2 · 88 · 3 / 1e3; cache 3 rows · 8 tokens · 2 · 8 · 2 bytes / 100 = 7.68; overhead 2 · 0.5
    five = replace(CPU, sampled_at_once=3)
    assert speed.sampling_seconds(SHAPE, WORK, RATES, five) == pytest.approx(3.456 + 2 * 4 * (1.84 + 7.68 + 1))
    numbers = trained(SHAPE, Train(), GRID)
    moved = 92 * (20 + 14 + 10) + 48 * 120
    assert speed.optimizer_seconds(numbers, WORK, RATES, CPU) == pytest.approx(moved / 100)


def test_mean_length_of_growing_rollouts_by_hand() -> None:
    assert mean_completion_tokens(64, None, 0.5) == 64
    # 16 to 64 over half of the steps, mean 40; then 64: (40 + 64) / 2
    assert mean_completion_tokens(64, 16, 0.5) == 52


@given(
    st.integers(1, 64), st.integers(1, 512), st.integers(1, 512), st.integers(1, 64), st.sampled_from(["cpu", "cuda"])
)
def test_more_tokens_need_more_memory_and_time(rows: int, prompt: int, completion: int, more: int, device) -> None:
    numbers = trained(SHAPE, Train(), GRID)

    def both(load: Load) -> tuple[int, float]:
        parts = memory.resident(SHAPE, numbers, 0, (), load) + memory.passing(SHAPE, numbers, KEPT, load, Savings())
        work = Work(load.micro_batch, load.prompt_tokens, load.completion_tokens)
        return memory.peak(parts)[0], speed.step_time(SHAPE, numbers, SHAPE, work, (RATES, load)).total

    load = Load(device, 2, rows, rows, prompt, completion)
    for field in ("micro_batch", "prompt_tokens", "completion_tokens"):
        larger = replace(load, **{field: getattr(load, field) + more})
        assert all(a <= b for a, b in zip(both(load), both(larger), strict=True))


def test_alternatives_lower_the_peak_and_are_added_up_when_none_is_enough() -> None:
    def predict(recover: Recover) -> int:
        lora = recover.train.what == "lora"
        moments = {"adamw": 80, "adamw_8bit": 20, "adafactor": 10}[recover.memory.optimizer]
        return 100 + 10 * recover.micro_batch_size + (5 if lora else moments)

    found = {choice.settings: choice for choice in alternatives(Recover(), predict, available=111)}
    # as it is: 100 + 80 + 80 = 260; a quarter of the micro-batch saves 60
    assert found["recover.micro_batch_size=2",].peak_bytes == 200
    assert found["recover.memory.optimizer=adafactor",].peak_bytes == 190
    assert ("recover.memory.gradient_checkpointing=true",) not in found  # changes nothing here
    # each that still helps, in order: 100 + 20 + 5 = 125, which is still too much
    last = list(found.values())[-1]
    assert last.settings == (
        "recover.micro_batch_size=2",
        "recover.memory.optimizer=adamw_8bit",
        "recover.memory.optimizer=adafactor",
        "recover.train.what=lora",
    )
    assert (last.peak_bytes, last.fits) == (125, False)
    enough = alternatives(Recover(), predict, available=250)
    assert all(choice.fits for choice in enough)
    assert max(len(choice.settings) for choice in enough) == 1
    assert alternatives(Recover(), predict, available=0)[0].fits is None


def test_settings_are_applied_as_they_are_typed() -> None:
    settings = ("recover.memory.gradient_checkpointing=true", "recover.micro_batch_size=2", "recover.train.what=lora")
    new = changed(Recover(), settings)
    assert (new.memory.gradient_checkpointing, new.micro_batch_size, new.train.what) == (True, 2, "lora")
