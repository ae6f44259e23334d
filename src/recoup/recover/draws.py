"""Draws the rollouts of steps: by the student, by a term's teacher, or from the prompt file.

What a rollout says depends on the seed, its term, its step and its number there, and on who writes; not on how many steps
are drawn at once, nor on which process draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from recoup.config import Recover
from recoup.data.prompts import Prompt
from recoup.models.backends import Backend
from recoup.models.load import LanguageModel
from recoup.models.logits import rows_of
from recoup.models.sample import Rollouts, Sampling, pack, pad_id, sample
from recoup.recover.buffer import Batch
from recoup.recover.schedule import allowed_tokens
from recoup.recover.terms import TermData, prompts_for
from recoup.training.processes import Processes


@dataclass(frozen=True)
class Place:
    """A row of a step's rollouts: its step, its number among its term's rollouts there, and its prompt."""

    step: int
    row: int
    prompt: Prompt


@dataclass(frozen=True)
class Drawer:
    """Draws this process's rollouts of any steps."""

    config: Recover
    terms: Sequence[TermData]
    student: LanguageModel  # for its tokenizer and device
    backend: Backend
    processes: Processes

    def by_student(self, steps: Sequence[int]) -> dict[int, Batch]:
        """Rollouts of `steps`, written by whoever each term names."""
        return self._draw(steps, may_write=True)

    def by_teacher(self, step: int) -> Batch:
        """Rollouts of a step before the student is able: its teachers write for it."""
        return self._draw([step], may_write=False)[step]

    def _draw(self, steps: Sequence[int], *, may_write: bool) -> dict[int, Batch]:
        batches: dict[int, Batch] = {step: [None] * len(self.terms) for step in steps}
        uses = self.config.rollout.uses  # so that a batch that serves several steps skips no prompt
        chosen = {step: prompts_for(self.terms, self.config.batch_size, step // uses) for step in steps}
        for index, term in enumerate(self.terms):
            places = [
                Place(step, row, chosen[step][index][row])
                for step in steps
                for row in self.processes.mine(len(chosen[step][index]))
            ]
            if places:
                rollouts = self._written(term, places, may_write=may_write)
                for step, part in _by_step(rollouts, places):
                    batches[step][index] = part
        return batches

    def _written(self, term: TermData, places: Sequence[Place], *, may_write: bool) -> Rollouts:
        prompts = [place.prompt for place in places]
        if term.config.completions == "file":
            answers = [prompt.answer[: self.config.rollout.max_tokens] for prompt in prompts if prompt.answer]
            return pack([p.ids for p in prompts], answers, pad_id(self.student), self.student.device)
        settings = self._settings(term, places)
        if may_write and term.config.completions == "student":
            return self.backend.sample([prompt.ids for prompt in prompts], settings)
        with term.teacher.model() as writer:
            written = sample(writer, [term.to_teacher(p) for p in prompts], replace(settings, logp=False))
        shared = [known(ids, term.teacher.num_shared) for ids in written.completions()]
        return pack([prompt.ids for prompt in prompts], shared, pad_id(self.student), self.student.device)

    def _settings(self, term: TermData, places: Sequence[Place]) -> Sampling:
        rollout, guards = self.config.rollout, self.config.guards
        return Sampling(
            max_tokens=allowed_tokens(rollout, places[0].step, self.config.steps),
            temperature=rollout.temperature,
            seed=term.seed,
            rows=tuple(place.step * self.config.batch_size + place.row for place in places),
            logp=rollout.importance_cap is not None or guards.min_entropy > 0,
        )


def known(ids: list[int], num_shared: int) -> list[int]:
    """A completion up to the first token that the student does not have: a padded head can draw what means nothing."""
    return ids[: next((place for place, token in enumerate(ids) if token >= num_shared), len(ids))]


def _by_step(rollouts: Rollouts, places: Sequence[Place]) -> list[tuple[int, Rollouts]]:
    """The rows of each step, which stand together."""
    steps = torch.tensor([place.step for place in places])
    values, counts = torch.unique_consecutive(steps, return_counts=True)
    parts, start = [], 0
    for step, count in zip(values.tolist(), counts.tolist(), strict=True):
        parts.append((step, rows_of(rollouts, slice(start, start + count))))
        start += count
    return parts
