"""The recovery loop: sample, score, compare, step.

On-policy self-distillation (arXiv 2604.15794; 2601.19897): the student answers prompts, a historical checkpoint of the same
model scores every token it wrote, and the student moves towards the teacher's distribution there. Where we differ: a
compressed student stays on its structure (`structure.guard`), it may begin on teacher-written text (`bootstrap`), and rollouts
may be reused or drawn ahead (`buffer`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from recoup.config import Recover
from recoup.models.backends import BACKENDS, Setup
from recoup.models.sample import Rollouts
from recoup.recover.balance import Balance
from recoup.recover.buffer import Batch, RolloutBuffer
from recoup.recover.collapse import Tally, Vitals, tally
from recoup.recover.compute import ComputeCopy
from recoup.recover.draws import Drawer
from recoup.recover.learner import Learner
from recoup.recover.measures import Clock, Sums
from recoup.recover.objective import TermBatch, micro_batches, term_batches
from recoup.recover.position import Position
from recoup.recover.schedule import allowed_tokens
from recoup.recover.teachers import after_step
from recoup.recover.terms import TermData
from recoup.results import RecoverStep
from recoup.training.memory import out_of_memory, smaller
from recoup.training.optimizer import Schedule, Stepper, learning_rate
from recoup.training.processes import Processes


@dataclass(frozen=True)
class Parts:
    """What a trainer is put together from."""

    compute: ComputeCopy
    stepper: Stepper
    terms: Sequence[TermData]
    processes: Processes
    folder: Path  # of the stage


class Trainer:
    """A recovery in progress; `step` takes it one optimizer step further."""

    def __init__(self, config: Recover, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.position = Position(balance=Balance.start(len(parts.terms)))
        self.micro_batch_size = config.micro_batch_size
        self._learner = Learner(config, parts.compute, parts.stepper)
        self._schedule = Schedule(
            config.steps, config.warmup_steps, config.learning_rate, config.min_learning_rate_fraction
        )
        self._may_write = any(term.config.completions == "student" for term in parts.terms)
        rollout, model = config.rollout, parts.compute.model
        setup = Setup(model, model.model.dtype, parts.folder, rollout.server, rollout.asynchronous)
        self._backend = BACKENDS[rollout.backend](setup)
        self._drawer = Drawer(config, parts.terms, model, self._backend, parts.processes)
        self.buffer = RolloutBuffer(rollout, config.steps, self._backend.follow, self._drawer.by_student)
        parts.compute.choose_attention(rollout)

    def step(self, step: int) -> tuple[RecoverStep, list[TermBatch]]:
        """Sample, score, compare, step; returns the metrics of all processes, and this one's rollouts.

        Raises:
            TrainingError: the loss or the gradient is NaN or infinite; no weight was changed.
        """
        clock = Clock()
        if step % self.config.rollout.uses == 0:
            self._learner.forget()
        with clock("sampling"):
            rollouts, overlap = self._rollouts(step)
            vitals, num_tokens = self._vitals(rollouts)
        batch = self._batch(rollouts, step)
        sums = self._gradients(batch, clock).over(self.parts.processes)
        with clock("optimizer"):
            rate, norm = self._update(step)
        phase = "off_policy" if self.position.phase.on_policy_from is None else "on_policy"
        metrics = RecoverStep(
            step=step,
            phase=phase,
            grad_norm=norm,
            learning_rate=rate,
            num_tokens=num_tokens,
            completion_tokens_mean=num_tokens / self.config.batch_size,
            overlap=overlap,
            staleness=self.buffer.staleness_of(step) if phase == "on_policy" else None,
            repetition=vitals.repetition,
            entropy_nats=vitals.entropy,
            roll_backs=self.position.roll_backs,
            **sums.metrics(),
            **clock.metrics(),
        )
        self._move_on(step, vitals, sums)
        seconds = self.parts.processes.sum([clock.total()])[0] / self.parts.processes.number
        self.position = replace(self.position, spent=self.position.spent.after(num_tokens, seconds))
        return metrics, batch

    def finished(self) -> bool:
        """Whether a look said that it is enough, or the budget is spent."""
        return self.position.looks.stopped is not None or self.position.spent.share(self.config.budget) >= 1

    def collapsed(self) -> str | None:
        """Which bound of the guards the last steps broke, in one sentence; null while all is well."""
        return self.position.watch.verdict(self.config.guards)

    def _rollouts(self, step: int) -> tuple[Batch, float | None]:
        """Rollouts by whoever writes at this step; the overlap where the bootstrap rule asks for it."""
        overlap, rule, phase = None, self.config.bootstrap, self.position.phase
        if self._may_write:
            if phase.must_measure(rule, step):
                self._backend.follow()
                overlap = self._overlap(self._drawer.by_student([step])[step])
            phase = phase.after(rule, step, overlap)
            self.position = replace(self.position, phase=phase)
        drawn = self._drawer.by_teacher(step) if phase.on_policy_from is None else self.buffer.rollouts_of(step)
        return drawn, overlap

    def _overlap(self, rollouts: Batch) -> float:
        """Mean sum_v min(p_T, p_S) over the first micro-batch of what the student wrote for its first term, whoever drew it."""
        processes, size = self.parts.processes, self.config.micro_batch_size
        index = next(i for i, term in enumerate(self.parts.terms) if term.config.completions == "student")
        batch = [term for term in self._batch(rollouts, 0) if term.index == index]
        mine = len(processes.mine(size))
        first = next(micro_batches(self.config, batch, mine), None) if mine else None
        total, count = processes.sum((0.0, 0.0) if first is None else self._learner.overlap(first))
        return total / max(1.0, count)

    def _batch(self, rollouts: Batch, step: int) -> list[TermBatch]:
        terms, balance = self.parts.terms, self.position.balance
        weights = [term.config.weight for term in terms]
        factors = balance.factors(weights) if self.config.balance == "gradient_norm" else (1.0,) * len(terms)
        return term_batches(self.config, terms, rollouts, (step, factors), self.parts.processes)

    def _gradients(self, batch: list[TermBatch], clock: Clock) -> Sums:
        """Of the whole batch; with smaller micro-batches from now on where memory runs out."""
        while True:
            sums = Sums.start(len(self.parts.terms))
            try:
                for part in micro_batches(self.config, batch, self.micro_batch_size):
                    sums = self._learner.learn(part, sums, clock, self._hidden_factor())
            except Exception as error:
                if not (self.config.memory.shrink_micro_batch and out_of_memory(error)):
                    raise
                self.micro_batch_size = smaller(self.micro_batch_size)
            else:
                return sums
            self.parts.stepper.forget_gradients()
            torch.cuda.empty_cache()

    def _hidden_factor(self) -> float:
        """What the hidden-state term's weight is multiplied by in this step."""
        settings = self.config.hidden_states
        return self.position.ratio.factor() if settings is not None and settings.balance == "loss" else 1.0

    def _update(self, step: int) -> tuple[float, float]:
        """The optimizer's step, and all that follows the student; returns learning rate and gradient norm."""
        slowed = self.config.guards.learning_rate_factor**self.position.roll_backs
        spent = self.position.spent.share(self.config.budget)
        rate = learning_rate(self._schedule, step, spent) * slowed
        norm = self.parts.stepper.step(rate)
        self.parts.compute.follow()
        after_step([term.teacher for term in self.parts.terms], step)
        return rate, norm

    def _vitals(self, rollouts: Batch) -> tuple[Vitals, int]:
        """Signs of life of what was written, and completion tokens, over all processes."""
        cap = allowed_tokens(self.config.rollout, 0, self.config.steps)
        mine = sum((tally(part, part.logp_BT, cap) for part in rollouts if part is not None), Tally())
        num_tokens = sum(int(part.completion_BT.sum()) for part in rollouts if isinstance(part, Rollouts))
        every = mine.over(self.parts.processes.sum)
        return every.vitals(), int(self.parts.processes.sum([num_tokens])[0])

    def _move_on(self, step: int, vitals: Vitals, sums: Sums) -> None:
        """The position after the step."""
        position = replace(self.position, step=step + 1)
        if position.phase.on_policy_from is not None:
            position = replace(position, watch=position.watch.after(self.config.guards, step, vitals))
        if self.config.balance == "gradient_norm":
            position = replace(position, balance=position.balance.after(sums.gradient_norms()))
        if self.config.hidden_states is not None:
            divergence, beside = sums.sides()
            unweighted = beside / (self.config.hidden_states.weight * self._hidden_factor())
            position = replace(position, ratio=position.ratio.after(divergence, unweighted))
        self.position = position
