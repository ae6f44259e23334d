"""Gradients of one micro-batch: the teacher scores it, the student runs forward, the kernel compares, autograd goes back.

Shapes: N completion tokens, of which C count, D width.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from recoup.config import Recover
from recoup.divergence import Compared, HiddenTargets, Rule, Targets, compare
from recoup.models.hidden import completion_hidden
from recoup.models.logits import completion_tokens
from recoup.recover import balance
from recoup.recover.compute import ComputeCopy
from recoup.recover.importance import completion_logp, effective_share, importance_weights
from recoup.recover.measures import Clock, Column, Sums
from recoup.recover.objective import MicroBatch, only, overlaps, tokens_as_targets
from recoup.recover.pairs import BlockPairs, States
from recoup.training.optimizer import Stepper


@dataclass(frozen=True)
class Seen:
    """What the two models put out on a micro-batch."""

    targets: Targets
    hidden_ND: Tensor
    theirs: States
    mine: States


class Learner:
    """Turns micro-batches into gradients of what trains."""

    def __init__(self, config: Recover, compute: ComputeCopy, stepper: Stepper) -> None:
        self._config, self._compute, self._stepper = config, compute, stepper
        self._rule = Rule(config.divergence, config.jensen_shannon_beta)
        settings = config.hidden_states
        self._pairs = BlockPairs(settings, compute.model.model) if settings else None
        self._said: dict[tuple[int, bytes], Targets] = {}

    def learn(self, part: MicroBatch, sums: Sums, clock: Clock, hidden_factor: float = 1.0) -> Sums:
        """Add the micro-batch's gradients to those of what trains; returns the sums with its figures.

        Args:
            part: rollouts of one forward pass.
            sums: of the micro-batches before.
            clock: of the step.
            hidden_factor: what the hidden-state term's weight is multiplied by.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        seen = self._seen(part, clock)
        with clock("student"):
            counts_N = part.weights_N > 0
            weights_N, effective = self._weights(part, seen.hidden_ND)
            states_CD, weights_C = seen.hidden_ND[counts_N], weights_N[counts_N]
            if self._config.balance == "gradient_norm":
                states_CD.retain_grad()
            shared = part.batch.term.teacher.num_shared
            found = compare(states_CD, self._compute.head, only(seen.targets, counts_N), self._rule, weights_C, shared)
            beside = self._pairs.loss(seen.mine, seen.theirs, weights_N * hidden_factor) if self._pairs else None
            self._stepper.backward(found.loss if beside is None else found.loss + beside)
        values = _figures(found, beside) | _norms(states_CD, weights_C) | {Column.EFFECTIVE: effective}
        return sums.plus(part.batch.index, values)

    @torch.no_grad()
    def overlap(self, part: MicroBatch) -> tuple[float, float]:
        """Sum over the tokens that count of sum_v min(p_T, p_S), and their number."""
        teacher = part.batch.term.teacher
        targets = teacher.score(part.to_teacher)
        assert isinstance(targets, HiddenTargets), "scores of what the student writes are not cached"
        hidden_ND = completion_hidden(self._compute.model.model, part.rollouts)
        counts_N = part.weights_N > 0
        found_N = overlaps(hidden_ND, self._compute.head, targets, teacher.num_shared)[counts_N]
        return float(found_N.sum()), float(len(found_N))

    def _seen(self, part: MicroBatch, clock: Clock) -> Seen:
        theirs: States = {}
        mine: States = {}
        with clock("teacher"), ExitStack() as watched:
            if part.batch.term.config.loss == "cross_entropy":
                targets: Targets = tokens_as_targets(completion_tokens(part.rollouts))
            else:
                teacher = part.batch.term.teacher
                if self._pairs:
                    model = watched.enter_context(teacher.model()).model
                    theirs = self._pairs.of_teacher(watched, model, part.to_teacher)
                targets = self._score(part)
        with clock("student"), ExitStack() as watched, self._compute.learning():
            if self._pairs and theirs:
                mine = self._pairs.of_student(watched, part.rollouts)
            hidden_ND = completion_hidden(self._compute.model.model, part.rollouts)
        return Seen(targets, hidden_ND, theirs, mine)

    def _score(self, part: MicroBatch) -> Targets:
        """What the teacher says; said once of rollouts that serve several steps, where the teacher does not move."""
        teacher = part.batch.term.teacher
        if self._config.rollout.uses == 1 or teacher.identity is None or self._pairs:
            return teacher.score(part.to_teacher)
        key = part.batch.index, part.to_teacher.tokens_BT.cpu().numpy().tobytes()
        if key not in self._said:
            self._said[key] = teacher.score(part.to_teacher)
        return self._said[key]

    def forget(self) -> None:
        """Forget what teachers said: new rollouts come."""
        self._said.clear()

    def _weights(self, part: MicroBatch, hidden_ND: Tensor) -> tuple[Tensor, float]:
        """Weights of the tokens, corrected for whoever drew them; and how many tokens they are worth, 0 if uncorrected."""
        cap, logp_BT = self._config.rollout.importance_cap, part.rollouts.logp_BT
        if cap is None or logp_BT is None:
            return part.weights_N, 0.0
        tokens_N = completion_tokens(part.rollouts)
        temperature = self._config.rollout.temperature
        logp_N = completion_logp(hidden_ND.detach(), self._compute.head, tokens_N, temperature)
        corrections_N = importance_weights(logp_N, logp_BT[part.rollouts.completion_BT], cap)
        counted_C = corrections_N[part.weights_N > 0]
        return part.weights_N * corrections_N, effective_share(counted_C) * len(counted_C)


def _figures(found: Compared, beside: Tensor | None) -> dict[Column, float]:
    return {
        Column.LOSS: float(found.loss.detach()),
        Column.NATS: float(found.per_token_N.sum()),
        Column.TOKENS: float(len(found.per_token_N)),
        Column.HIDDEN: 0.0 if beside is None else float(beside.detach()),
    }


def _norms(states_CD: Tensor, weights_C: Tensor) -> dict[Column, float]:
    """For `balance`; nothing where the gradient was not kept."""
    if not states_CD.retains_grad or states_CD.grad is None:
        return {}
    squares, weights = balance.squared_norm(states_CD.grad, weights_C)
    return {Column.SQUARES: squares, Column.WEIGHTS: weights}
