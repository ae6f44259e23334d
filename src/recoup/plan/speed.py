"""Time of one optimizer step: pure formulas, seconds.

n numbers in the student, m of them in blocks, V × D the head, R rollouts of P + C tokens, F the machine's products a second,
W its bytes a second when copying. A product of N tokens with w numbers is 2 N w operations:

    prefill    R (P − 1) · 2m / F
    decode     C × ( max(c · n / W, 2n R / F) + (KV cache read) / W + blocks × overhead )
    teacher    R (P + C) · 2m / F
    student    R (P + C) · 6m / F, 8m when checkpointed, + 8 · R C · V D / F for both heads and their gradients
    optimizer  (hand-over + moments + projection + compute copy: bytes a number) / W

and attention: 4 T for each token, block and number of attention width, three times that with gradients. Rates are
multiplied by efficiencies: where each comes from stands beside it.
"""

from dataclasses import dataclass
from typing import Literal

from recoup.plan.memory import FLOAT_BYTES, Load
from recoup.plan.record import MachineRates, StepTime
from recoup.plan.shapes import ModelShape
from recoup.plan.trained import Trained

# Shares of the measured rate of 1024 × 1024 products, and seconds that a block costs at each token whatever its size.
# CPU: solved from steps of 12 rollouts of 44 + 48 tokens (SmolLM2-135M, bf16, 2 cores, alone on the machine: student 1.90 s,
# teacher 0.47 s) and from decode steps of 12, 32 and 64 rows (27, 38 and 51 ms), with 2,100 GFLOP/s and 22 GB/s measured then.
# Accelerators: assumed, not measured.
TRAINING_EFFICIENCY = {"cpu": 0.20, "cuda": 0.35}
SCORING_EFFICIENCY = {"cpu": 0.25, "cuda": 0.45}
DECODE_OVERHEAD = {"cpu": 5e-4, "cuda": 3e-4}
# Bytes for each number, as if copied: measured as time × the rate of copying (SmolLM2-135M, 1 thread).
HAND_OVER_BYTES = 14  # bf16 gradient to float32
COPY_BYTES = 10  # float32 weight to bf16
PROJECTION_BYTES = 120  # int3, scales fitted anew; of weights on a grid
OPTIMIZER_BYTES = {
    "cpu": {"adamw": 20, "adafactor": 72, "adamw_8bit": 3200},
    "cuda": {"adamw": 20, "adafactor": 72, "adamw_8bit": 20},  # not measured: bound by memory, compiled
}
RECOMPUTED = {False: 6, True: 8}  # operations for each token and number: forward 2, backward 4, and forward again


@dataclass(frozen=True)
class Work:
    """What one step does."""

    rollouts: int
    prompt_tokens: float  # mean
    completion_tokens: float  # mean over the run
    sampled_steps: float = 1.0  # rollouts sampled for each step taken: 1 / uses
    checkpointing: bool = False
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"

    @property
    def tokens(self) -> float:
        """Prompt and completion tokens of a step."""
        return self.rollouts * (self.prompt_tokens + self.completion_tokens)


def step_time(
    shape: ModelShape, trained: Trained, teacher: ModelShape | None, work: Work, machine: tuple[MachineRates, Load]
) -> StepTime:
    """Seconds of one step by part, on a machine and with what is done at once there."""
    rates, load = machine
    return StepTime(
        sampling=sampling_seconds(shape, work, rates, load) * work.sampled_steps,
        teacher=teacher_seconds(teacher, work, rates, load),
        student=student_seconds(shape, teacher, work, rates, load),
        optimizer=optimizer_seconds(trained, work, rates, load),
    )


def sampling_seconds(shape: ModelShape, work: Work, rates: MachineRates, load: Load) -> float:
    """Prefill, then one token after another for groups of `sampled_at_once` rollouts."""
    scoring = rates.gemm_flops * SCORING_EFFICIENCY[load.device]
    prefill = 2 * shape.num_in_blocks * work.rollouts * work.prompt_tokens / scoring
    groups = max(1.0, work.rollouts / load.sampled_at_once)
    rows = work.rollouts / groups
    read = load.compute_bytes * shape.num_parameters / rates.bytes_per_second
    multiplied = 2 * (shape.num_in_blocks + shape.vocabulary * shape.width) * rows / scoring
    length = work.prompt_tokens + work.completion_tokens / 2
    cached = rows * length * shape.num_blocks * shape.kv_width * load.compute_bytes / rates.bytes_per_second
    token = max(read, multiplied) + cached + shape.num_blocks * DECODE_OVERHEAD[load.device]
    return prefill + groups * work.completion_tokens * token


def teacher_seconds(teacher: ModelShape | None, work: Work, rates: MachineRates, load: Load) -> float:
    """One forward pass through the blocks, of a teacher if there is one; its head is part of the divergence."""
    if teacher is None:
        return 0.0
    operations = 2 * teacher.num_in_blocks * work.tokens + attention_operations(teacher, work)
    return operations / (rates.gemm_flops * SCORING_EFFICIENCY[load.device])


def student_seconds(
    shape: ModelShape, teacher: ModelShape | None, work: Work, rates: MachineRates, load: Load
) -> float:
    """Forward and backward pass, and the divergence with both heads."""
    passes = RECOMPUTED[work.checkpointing]
    blocks = passes * shape.num_in_blocks * work.tokens + passes / 2 * attention_operations(shape, work)
    scored = work.rollouts * work.completion_tokens
    heads = scored * 6 * shape.vocabulary * shape.width
    if teacher is not None:
        heads += scored * 2 * teacher.vocabulary * teacher.width
    return (blocks + heads) / (rates.gemm_flops * TRAINING_EFFICIENCY[load.device])


def attention_operations(shape: ModelShape, work: Work) -> float:
    """Scores and their sums of values, forward, all blocks."""
    length = work.prompt_tokens + work.completion_tokens
    return 4 * work.tokens * length * shape.num_blocks * shape.attention_width


def optimizer_seconds(trained: Trained, work: Work, rates: MachineRates, load: Load) -> float:
    """Gradients handed over, the step, the projection, and the compute copy brought up to date."""
    projected = trained.latent + trained.start
    moved = trained.numbers * OPTIMIZER_BYTES[load.device][work.optimizer] + PROJECTION_BYTES * projected
    if load.compute_bytes < FLOAT_BYTES:
        moved += (HAND_OVER_BYTES + COPY_BYTES) * trained.moved
    return moved / rates.bytes_per_second


def mean_completion_tokens(max_tokens: int, start_tokens: int | None, grow_until: float) -> float:
    """Mean over the run of a length that grows linearly from `start_tokens` until a share `grow_until` of the steps."""
    start = max_tokens if start_tokens is None else start_tokens
    return max_tokens - grow_until * (max_tokens - start) / 2
