"""The recovery loop: sample, score, compare, step.

On-policy self-distillation (arXiv 2604.15794; 2601.19897): the student answers prompts, a historical checkpoint of the same
model scores every token it wrote, and the student moves towards the teacher's distribution there. Where we differ: a
compressed student stays on its structure (`structure.guard`), and it may begin on teacher-written text (`bootstrap`).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from recoup import divergence
from recoup.config import Recover, Rollout
from recoup.data.prompts import Prompt
from recoup.models.load import LanguageModel
from recoup.models.logits import completion_logits
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.recover.bootstrap import Phase
from recoup.recover.objective import MicroBatch, TermBatch, micro_batches, shared_logits, weighted_sum
from recoup.recover.rollout import SamplingCopy, prompts_of_step, seed_of, shares
from recoup.recover.teacher import Teacher
from recoup.results import RecoverStep
from recoup.structure.guard import Guard
from recoup.training.optimizer import Schedule, Stepper, StepSettings, learning_rate

PLAIN_ATTENTION_TOKENS = 512


@dataclass(frozen=True)
class TermData:
    """One term of the objective, ready to use."""

    prompts: list[Prompt]
    teacher: Teacher
    weight: float


@dataclass
class Clock:
    """Seconds by part of a step."""

    seconds: dict[str, float] = field(default_factory=lambda: {"sampling": 0.0, "teacher": 0.0, "student": 0.0})

    def add(self, part: str, since: float) -> None:
        """Add the time since `since`, of `time.perf_counter`, to a part."""
        self.seconds[part] += time.perf_counter() - since


class Trainer:
    """A recovery in progress; `step` takes it one optimizer step further."""

    def __init__(self, config: Recover, student: LanguageModel, guard: Guard, terms: list[TermData], seed: int) -> None:
        self.config, self.student, self.guard, self.terms, self.seed = config, student, guard, terms, seed
        self.phase = Phase()
        settings = StepSettings(config.precision, config.weight_decay, config.max_grad_norm)
        self.stepper = Stepper(guard, settings)
        self.schedule = Schedule(
            config.steps, config.warmup_steps, config.learning_rate, config.min_learning_rate_fraction
        )
        self.divergence = divergence.named(config.divergence, config.jensen_shannon_beta)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.sampler = SamplingCopy(student, dtype)
        _choose_attention(student, config.rollout)

    def step(self, step: int) -> tuple[RecoverStep, list[TermBatch]]:
        """Sample, score, compare, step; returns the metrics and what was sampled.

        Raises:
            TrainingError: the loss or the gradient is NaN or infinite.
        """
        clock = Clock()
        batch, overlap = self._rollouts(step, clock)
        losses = [self._backward(part, clock) for part in self._micro_batches(batch)]
        began = time.perf_counter()
        rate = learning_rate(self.schedule, step)
        norm = self.stepper.step(rate)
        clock.add("student", began)
        lengths = torch.cat([term.rollouts.completion_BT.sum(-1) for term in batch])
        metrics = RecoverStep(
            step=step,
            phase="off_policy" if self.phase.on_policy_from is None else "on_policy",
            loss=sum(losses),
            grad_norm=norm,
            learning_rate=rate,
            num_tokens=int(lengths.sum()),
            completion_tokens_mean=float(lengths.float().mean()),
            overlap=overlap,
            **{f"seconds_{part}": seconds for part, seconds in clock.seconds.items()},
        )
        return metrics, batch

    def _micro_batches(self, batch: list[TermBatch]) -> Iterator[MicroBatch]:
        return micro_batches(batch, self.config.micro_batch_size, self.config.skip_tokens)

    def _rollouts(self, step: int, clock: Clock) -> tuple[list[TermBatch], float | None]:
        """Rollouts by whoever writes at this step; the overlap where the bootstrap rule asks for it."""
        overlap = None
        if self.phase.must_measure(self.config.bootstrap, step):
            batch = self._sample(step, clock, by_student=True)
            overlap = self._overlap(batch, clock)
            self.phase = self.phase.after(self.config.bootstrap, step, overlap)
            if self.phase.on_policy_from is not None:
                return batch, overlap
        self.phase = self.phase.after(self.config.bootstrap, step, None)
        return self._sample(step, clock, by_student=self.phase.on_policy_from is not None), overlap

    def _sample(self, step: int, clock: Clock, *, by_student: bool) -> list[TermBatch]:
        began = time.perf_counter()
        if by_student:
            self.sampler.follow()
        counts = shares(self.config.batch_size, len(self.terms), step)
        total = sum(term.weight for term, count in zip(self.terms, counts, strict=True) if count)
        batch = []
        for index, (term, count) in enumerate(zip(self.terms, counts, strict=True)):
            if count:
                writer = self.sampler.model if by_student else term.teacher.model
                rollouts = self._complete(writer, term, count, (step, index))
                batch.append(TermBatch(rollouts, term.teacher, term.weight / total))
        clock.add("sampling", began)
        return batch

    def _complete(self, writer: LanguageModel, term: TermData, count: int, place: tuple[int, int]) -> Rollouts:
        step, index = place
        prompts = prompts_of_step(term.prompts, step, count, seed_of(self.seed, index))
        # one length per forward pass wastes no pads; sampling sorts for itself
        prompts = sorted(prompts, key=lambda prompt: len(prompt.ids))
        settings = Sampling(
            self.config.rollout.max_tokens, self.config.rollout.temperature, seed_of(self.seed, step, index)
        )
        return sample(writer, [prompt.ids for prompt in prompts], settings)

    def _overlap(self, batch: list[TermBatch], clock: Clock) -> float:
        """Mean sum_v min(p_T, p_S) over the first micro-batch of what the student wrote."""
        began = time.perf_counter()
        part = next(self._micro_batches(batch))
        teacher = shared_logits(part.teacher.score(part.rollouts), part.scored_N, part.teacher.num_shared)
        with torch.inference_mode():
            student = completion_logits(self.sampler.model.model, part.rollouts)
            value = divergence.overlap(shared_logits(student, part.scored_N, part.teacher.num_shared), teacher).mean()
        clock.add("teacher", began)
        return float(value)

    def _backward(self, part: MicroBatch, clock: Clock) -> float:
        """Gradients of one micro-batch; returns its share of the loss, nats per token."""
        began = time.perf_counter()
        targets = shared_logits(part.teacher.score(part.rollouts), part.scored_N, part.teacher.num_shared)
        clock.add("teacher", began)
        began = time.perf_counter()
        with self.stepper.autocast():
            logits = completion_logits(self.student.model, part.rollouts)
        logits = shared_logits(logits, part.scored_N, part.teacher.num_shared)
        loss = weighted_sum(self.divergence(logits, targets.clone()), part.token_weight)
        self.stepper.backward(loss)
        clock.add("student", began)
        return float(loss.detach())


def _choose_attention(student: LanguageModel, rollout: Rollout) -> None:
    """Plain attention for short rollouts on a CPU: torch's fused backward takes twice its time there.

    Measured at 12 rollouts of 104 tokens, SmolLM2-135M: a third of the student's backward pass. Plain attention keeps
    T × T scores per head and layer for the backward pass, so long rollouts keep the fused kernel.
    """
    if student.device.type == "cpu" and rollout.max_prompt_tokens + rollout.max_tokens <= PLAIN_ATTENTION_TOKENS:
        student.model.set_attn_implementation("eager")
