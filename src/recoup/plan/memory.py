"""Peak memory of a repair, by part: pure formulas, bytes.

What is there all the time is added up, and to it the largest of three phases: sampling (KV cache, one step's logits),
training (activations, gradients, the divergence's chunk) and the optimizer's step (gradients, scratch). n numbers in the
student, t of them trained, l in latent copies, c bytes a number in the type that is computed in:

    always     base + 4n weights + c·n compute copy (bf16) + 4l latents + 4 s starts + structure + moments + teachers
    sampling   rows × (P + C) × blocks × kv_width × c, and rows × V × (c + 4 + 4) for the drawing of one token
    training   4t gradients + rows × (a T + b T²) + 8 × logits + c × slopes + largest × (c + 4), the gradient being handed over
    optimizer  4t gradients + 24 × the largest weight on a grid + the optimizer's own scratch × the largest weight

with T = P + C the longest prompt and completion. Checkpointed, activations are the blocks' inputs and one block's own.
Moments: 8 t (AdamW), 2.03 t (its 8-bit kind: a code and 4/256 of a scale, twice), 4 × rows and columns (Adafactor).
"""

from dataclasses import dataclass
from typing import Literal

from recoup.divergence.chunks import LOGIT_ELEMENTS, SLOPE_ROWS
from recoup.plan.record import MemoryPart, Phase
from recoup.plan.shapes import Activations, ModelShape
from recoup.plan.trained import Trained

FLOAT_BYTES = 4
CODED_MOMENTS_BYTES = 2 * (1 + 4 / 256)  # torchao's AdamW8bit: codes and a float32 scale for each 256
INT8_BYTES = 1 + 4 / 1024  # a code, and a float32 scale for each output channel
PROJECTION_BYTES = 6 * 4  # for each number of the one matrix being projected: about six float32 copies (int3)
# of the one parameter being stepped: a variance estimate; eagerly, on a CPU, 8-byte indices of codes and float copies
SCRATCH_BYTES = {"adamw": 0, "adafactor": 8, "adamw_8bit": 40}
# a process that has imported torch, transformers and the stages: 384 MiB measured on Linux, torch 2.13 for CPUs
BASE_BYTES = {"cpu": 384 * 2**20, "cuda": 0}  # an accelerator's own context is not counted by its allocator
# Freed activations that the C allocator does not hand out again: set by eye on two measured peaks of this engine's parts
# (SmolLM2-135M at int3, AdamW, 3 steps, 1 thread): 4,347 MiB at 8 × 104 tokens and 3,693 at 2 × 104, now predicted / measured
# 1.004 and 1.012. At 16 × 104 tokens, measured afterwards, 5,198 / 5,431 = 0.957: it was still growing at the third step.
RETENTION = {"cpu": 1.1, "cuda": 1.0}

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Load:
    """How much is done at once, and in which type."""

    device: Device
    compute_bytes: int  # 2: bf16, 4: fp32
    micro_batch: int  # rollouts in one forward pass
    sampled_at_once: int  # rollouts that decode together
    prompt_tokens: int  # of the longest prompts
    completion_tokens: int


@dataclass(frozen=True)
class Savings:
    """What is spent to fit."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    checkpointing: bool = False
    offload: bool = False  # activations wait in main memory


@dataclass(frozen=True)
class TeacherShape:
    """A teacher: how many numbers it holds, and how; a moving average (`ema`) holds them in fp32 too."""

    name: str
    numbers: int
    in_linears: int = 0  # of these, in linear layers of blocks: the ones that `int8` codes
    hold: Literal["plain", "int8", "offload"] = "plain"
    averaged: bool = False
    num_blocks: int = 1


def moments(trained: Trained, optimizer: Literal["adamw", "adamw_8bit", "adafactor"]) -> int:
    """Bytes of optimizer state."""
    if optimizer == "adafactor":
        return FLOAT_BYTES * trained.factored
    per_number = 2 * FLOAT_BYTES if optimizer == "adamw" else CODED_MOMENTS_BYTES
    return round(per_number * trained.numbers)


def activations(kept: Activations, num_blocks: int, load: Load, savings: Savings) -> int:
    """Bytes kept between forward and backward pass on the device that computes."""
    tokens = load.prompt_tokens + load.completion_tokens
    full = kept.per_token * tokens + kept.per_pair * tokens**2
    one_block = full / num_blocks
    if savings.offload and load.device == "cuda":
        full = 2 * one_block  # one in use, one on its way
    elif savings.checkpointing:
        full = kept.narrow_per_token * tokens + one_block
    return round(RETENTION[load.device] * load.micro_batch * full)


def teacher_bytes(teacher: TeacherShape, load: Load) -> int:
    """Bytes on the device that computes; on a CPU there is nowhere to offload to."""
    outside = load.compute_bytes * (teacher.numbers - teacher.in_linears)
    inside: float = load.compute_bytes * teacher.in_linears
    if teacher.hold == "int8":
        inside = INT8_BYTES * teacher.in_linears
    elif teacher.hold == "offload" and load.device == "cuda":
        inside = 2 * inside / teacher.num_blocks  # one block in use, one on its way
    average = FLOAT_BYTES * teacher.numbers if teacher.averaged else 0
    if teacher.averaged and load.compute_bytes == FLOAT_BYTES:
        return average  # it is its own copy to compute with
    return round(outside + inside + average)


def resident(
    shape: ModelShape, trained: Trained, structure: int, teachers: tuple[TeacherShape, ...], load: Load
) -> tuple[MemoryPart, ...]:
    """What is there all the time, the moments left out; `structure` is the bytes of masks and scales."""
    copy = load.compute_bytes * shape.num_parameters if load.compute_bytes < FLOAT_BYTES else 0
    sizes = {
        "process": BASE_BYTES[load.device],
        "student, fp32": FLOAT_BYTES * shape.num_parameters,
        "compute copy, bf16": copy,
        "latent copies": FLOAT_BYTES * trained.latent,
        "starting weights": FLOAT_BYTES * trained.start,
        "low-rank or scale tensors": FLOAT_BYTES * trained.numbers if trained.start else 0,
        "masks and scales": structure,
    }
    parts = [_part(name, "always", size) for name, size in sizes.items()]
    parts += [_part(f"teacher {teacher.name}", "always", teacher_bytes(teacher, load)) for teacher in teachers]
    return tuple(part for part in parts if part.num_bytes)


def passing(
    shape: ModelShape, trained: Trained, kept: Activations, load: Load, savings: Savings
) -> tuple[MemoryPart, ...]:
    """The moments, and what comes and goes with the phases of a step."""
    rows, tokens = load.sampled_at_once, load.prompt_tokens + load.completion_tokens
    cache = rows * tokens * shape.num_blocks * shape.kv_width * load.compute_bytes
    drawn = rows * shape.vocabulary * (load.compute_bytes + 2 * FLOAT_BYTES)
    scored = load.micro_batch * load.completion_tokens
    logits = min(scored * shape.vocabulary, LOGIT_ELEMENTS[load.device])
    slopes = min(scored, SLOPE_ROWS[load.device]) * shape.vocabulary
    gradients = FLOAT_BYTES * trained.numbers
    handed = shape.largest * (load.compute_bytes + FLOAT_BYTES)
    scratch = PROJECTION_BYTES * trained.largest_on_grid + SCRATCH_BYTES[savings.optimizer] * trained.largest
    return (
        _part(f"{savings.optimizer} moments", "always", moments(trained, savings.optimizer)),
        _part("KV cache", "sampling", cache),
        _part("next-token logits", "sampling", drawn),
        _part("activations", "training", activations(kept, shape.num_blocks, load, savings)),
        _part("divergence chunk", "training", 2 * FLOAT_BYTES * logits + load.compute_bytes * slopes),
        _part("gradient being handed over", "training", handed),
        _part("gradients", "training", gradients),
        _part("gradients", "optimizer", gradients),
        _part("optimizer and projection scratch", "optimizer", scratch),
    )


def peak(parts: tuple[MemoryPart, ...]) -> tuple[int, Phase]:
    """Bytes at the worst moment, and the phase it falls in."""
    phases: tuple[Phase, ...] = ("sampling", "training", "optimizer")
    sums = {phase: sum(part.num_bytes for part in parts if part.phase in ("always", phase)) for phase in phases}
    worst = max(phases, key=lambda phase: sums[phase])
    return sums[worst], worst


def _part(name: str, phase: Phase, size: float) -> MemoryPart:
    return MemoryPart(name=name, phase=phase, num_bytes=round(size))
