"""Supervised fine-tuning on a narrow task, which makes a model forget the rest (2604.15794, section on forgetting).

Cross-entropy of the completion's tokens only, averaged over the tokens of a batch; AdamW, linear warm-up, cosine to 0. All
weights, or a LoRA (2106.09685) on every linear layer of the blocks, inside the structure (`structure.trainable`). Dropout
is off: runs are deterministic given the seed, and current models are trained without it.

A batch is drawn at random and sorted by length before it is split into micro-batches: few pads, and no step sees one length
only, as it would if batches were cut from a sorted file.

Shapes: N completion tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recoup.config import SFT, Train
from recoup.data.sft import Example, load_examples
from recoup.degrade import Context
from recoup.models.load import LanguageModel
from recoup.models.logits import completion_logits, completion_tokens
from recoup.models.sample import pack, pad_id
from recoup.structure.guard import Guard
from recoup.structure.spec import Structure
from recoup.training.optimizer import Schedule, Stepper, StepSettings, learning_rate
from recoup.training.plan import lora_of, training_plan

WARMUP_SHARE = 0.03  # of all steps, as QLoRA trains (2305.14314, appendix B)


def apply(model: LanguageModel, structure: Structure, config: SFT, context: Context) -> Structure:
    """Fine-tune `model` in place, on its structure; returns the structure with its scales as they ended.

    Raises:
        DataError: the training file is missing, malformed or empty.
        TrainingError: the loss or the gradient is NaN or infinite.
    """
    examples = load_examples(config.train_file, model.tokenizer, config.max_tokens, config.num_rows, context.seed)
    train = Train(what="lora" if config.adapter == "lora" else "weights", lora_rank=config.lora_rank)
    plan = training_plan(replace(model, structure=structure), train)
    guard = Guard(model.model, structure, plan, lora_of(train, context.seed))
    _train(model, guard, examples.rows, config, context)
    guard.release()
    model.model.requires_grad_(False)
    dropped = f", {examples.num_dropped} dropped (completion over {config.max_tokens} tokens)"
    steps = num_steps(len(examples.rows), config)
    context.note(
        f"fine-tuned ({config.adapter}) for {steps} steps on {len(examples.rows)} rows{dropped if examples.num_dropped else ''}"
    )
    return guard.structure


def num_steps(num_rows: int, config: SFT) -> int:
    """Optimizer steps: `steps` where given, else as many as `epochs` passes take; the last batch of a pass may be short."""
    return config.steps or config.epochs * ceil(num_rows / config.batch_size)


def batch_order(num_rows: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Row numbers of batch after batch, without end: every pass is a new shuffle of all rows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_rows, generator=generator).tolist()
        yield from (order[start : start + batch_size] for start in range(0, num_rows, batch_size))


def token_losses(logits_NV: Float[Tensor, "N V"], tokens_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Cross-entropy of each token, nats, float32."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), tokens_N, reduction="none")


def _train(model: LanguageModel, guard: Guard, rows: Sequence[Example], config: SFT, context: Context) -> None:
    steps = num_steps(len(rows), config)
    schedule = Schedule(steps, ceil(WARMUP_SHARE * steps), config.learning_rate)
    stepper = Stepper(guard, StepSettings())
    batches = batch_order(len(rows), config.batch_size, context.seed)
    for step in range(steps):
        batch = [rows[i] for i in next(batches)]
        loss = _accumulate(model, stepper, batch, config.micro_batch_size)
        stepper.step(learning_rate(schedule, step))
        context.progress(f"sft: loss {loss:.3f}", step + 1, steps)


def _accumulate(model: LanguageModel, stepper: Stepper, batch: Sequence[Example], micro_batch_size: int) -> float:
    """Gradients of a batch's mean loss per completion token, some rows at a time; returns that loss, nats."""
    by_length = sorted(batch, key=lambda row: len(row.prompt) + len(row.completion))
    num_tokens = sum(len(row.completion) for row in batch)
    total = 0.0
    for start in range(0, len(by_length), micro_batch_size):
        micro = by_length[start : start + micro_batch_size]
        prompts, completions = [row.prompt for row in micro], [row.completion for row in micro]
        rollouts = pack(prompts, completions, pad_id(model), model.device)
        with stepper.autocast():
            logits_NV = completion_logits(model.model, rollouts)
        loss = token_losses(logits_NV, completion_tokens(rollouts)).sum() / num_tokens
        stepper.backward(loss)
        total += loss.item()
    return total
