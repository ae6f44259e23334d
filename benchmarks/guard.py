"""The guard: a training step and a decoded token with a structure, against the same without one; and what trains, in memory.

SmolLM2-135M, batch 8 × 256 tokens, plain cross-entropy, AdamW on fp32 weights under bf16 autocast.
Run: `python -m benchmarks.guard`
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.timing import compare
from recoup.config import Quantize, Train
from recoup.degrade import METHODS, Context
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Sampling, sample
from recoup.progress import silent
from recoup.structure.guard import Guard
from recoup.structure.spec import Structure
from recoup.training.optimizer import Stepper, StepSettings
from recoup.training.plan import lora_of, training_plan

BATCH, TOKENS, RATE = 8, 256, 1e-5
DECODED = 32
FORMATS: tuple[dict[str, Any], ...] = (
    {"format": "int", "bits": 4, "group_size": 64},
    {"format": "nf4"},
    {"format": "q4_0"},
    {"format": "q4_k"},
)
MIB = 2**20


def student(settings: dict[str, Any] | None) -> LanguageModel:
    """The embedded model, quantized where settings are given."""
    model = load("embedded")
    if settings is None:
        return model
    context = Context(0, silent, lambda _note: None)
    structure = METHODS["quantize"].apply(model, Structure(), Quantize(**settings), context)
    return replace(model, structure=structure)


def stepping(model: LanguageModel, train: Train) -> tuple[Stepper, Callable[[], object]]:
    """An optimizer, and one training step on fixed random tokens."""
    guard = Guard(model.model, model.structure, training_plan(model, train), lora_of(train, 0))
    stepper = Stepper(guard, StepSettings())
    ids = torch.randint(1000, 40000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with stepper.autocast():
            loss = model.model(ids, labels=ids).loss
        stepper.backward(loss)
        stepper.step(RATE)

    return stepper, step


def main() -> None:
    """Print the ratios, then bytes of AdamW's moments for each thing that can train."""
    plain = student(None)
    _, free_step = stepping(plain, Train())
    for settings in FORMATS:
        constrained = student(settings)
        _, step = stepping(constrained, Train())
        compare(f"training step, {constrained.structure.describe()}", step, free_step, "without structure")
    _decoding()
    for train in (
        Train(),
        Train(what="lora"),
        Train(what="scales"),
        Train(what="norms"),
        Train(layers=tuple(range(15))),
    ):
        stepper, step = stepping(student(FORMATS[0]), train)
        step()
        what = f"{train.what}, blocks 0 to 14" if train.layers else train.what
        print(f"{what}: {stepper.num_trained:,} numbers train, {stepper.optimizer_bytes() / MIB:.1f} MiB of moments")


def _decoding() -> None:
    """The same weights, so the same tokens, with a guard and without."""
    guarded, bare = student(FORMATS[0]), student(FORMATS[0])
    guard = Guard(guarded.model, guarded.structure)
    prompts = [bare.tokenizer(f"Tell me {number} things.").input_ids for number in range(BATCH)]
    settings = Sampling(DECODED)
    ours, theirs = (lambda: sample(guarded, prompts, settings)), (lambda: sample(bare, prompts, settings))
    compare("decoding under the guard", ours, theirs, "without structure")
    guard.release()


if __name__ == "__main__":
    main()
