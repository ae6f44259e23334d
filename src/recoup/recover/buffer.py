"""Which rollouts a step trains on: reused, drawn ahead, or drawn while the student trains; staleness is bounded and exact.

Steps are laid into batches of `uses` steps that share their rollouts, and batches into groups of `ahead` batches that are
drawn at once by the student as it is when the group begins. `asynchronous` draws the next group in a background thread while
the student trains on the present one, so its writer is the student at the beginning of the group before. Which weights
write which rollouts depends on step numbers alone, never on timing: a run gives the same weights however fast its sampler is,
and a saved buffer continues as if it had not stopped.

    uses 2, ahead 2        steps  0 1 2 3 | 4 5 6 7 | ...
    batch (its first step)        0 0 2 2 | 4 4 6 6
    writer                        0 0 0 0 | 4 4 4 4          asynchronous:  0 0 0 0 | 0 0 0 0 | 4 4 4 4
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from recoup.config import Rollout
from recoup.models.sample import Rollouts

Batch = list[Rollouts | None]  # one entry per term of the objective; none for a term that has no share in the batch
Draw = Callable[[range], dict[int, Batch]]
TENSOR_NAME = re.compile(r"(\d+)\.(\d+)\.(\w+)")  # step, term, field


@dataclass(frozen=True)
class Held:
    """A batch, and the step whose weights wrote it: those before the step is taken."""

    batch: Batch
    writer: int


class RolloutBuffer:
    """Gives every step its rollouts.

    Args:
        settings: `ahead`, `uses` and `asynchronous` of the config.
        num_steps: steps of the run; nothing is drawn beyond.
        follow: makes the sampler take over the student's present weights; never called while a draw is under way.
        draw: given the first steps of batches, samples each of them with the weights last taken over. Runs in another
            thread when asynchronous, so it must read nothing that training changes.
    """

    def __init__(self, settings: Rollout, num_steps: int, follow: Callable[[], None], draw: Draw) -> None:
        self._uses, self._ahead, self._asynchronous = settings.uses, settings.ahead, settings.asynchronous
        self._num_steps, self._follow, self._draw = num_steps, follow, draw
        self._held: dict[int, Held] = {}  # by first step: the present group
        self._coming: dict[int, Held] = {}  # the next group, once it is here
        self._flight: _Flight | None = None

    def rollouts_of(self, step: int) -> Batch:
        """The rollouts that `step` trains on, one entry per term. Steps are asked for in order.

        Raises:
            Whatever `draw` raised, in this thread or in the background.
        """
        first = self._first(step)
        if first not in self._held:
            self._advance(step)
        return self._held[first].batch

    def staleness_of(self, step: int) -> int:
        """Optimizer steps between the weights that wrote the step's rollouts and those that train on them.

        At most `ahead * uses - 1`; when asynchronous, at most `2 * ahead * uses - 1`.
        """
        return step - self._held[self._first(step)].writer

    def drop(self) -> None:
        """Forget all rollouts, such as those of another writer; a draw under way is waited for, and its errors with it."""
        if self._flight is not None:
            self._flight.wait()
        self._held, self._coming, self._flight = {}, {}, None

    def state(self, next_step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint taken before `next_step` keeps; waits for a draw under way, so that none is lost.

        Returns:
            Tensors, named step.term.field, that share no memory; and a record that JSON can hold.
        """
        self._land()
        held = {step: item for step, item in self._held.items() if step >= self._first(next_step)}
        parts = {
            (step, term): rollouts
            for step, item in {**held, **self._coming}.items()
            for term, rollouts in enumerate(item.batch)
            if rollouts is not None
        }
        return named_tensors(parts), {"held": _record(held), "coming": _record(self._coming)}

    def load_state(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Continue from what `state` gave; the tensors stay where they are."""
        self.drop()
        found = parts_of(tensors)
        self._held, self._coming = _batches(record["held"], found), _batches(record["coming"], found)

    def _first(self, step: int) -> int:
        """The first step of the batch that serves `step`."""
        return step - step % self._uses

    def _group(self, step: int) -> range:
        """First steps of the batches that are drawn together with that of `step`, from it on."""
        length = self._uses * self._ahead
        end = min(step - step % length + length, self._num_steps)
        return range(self._first(step), end, self._uses)

    def _advance(self, step: int) -> None:
        """Turn to the group of `step`; when asynchronous, have the next one begun."""
        self._land()
        group, self._held, self._coming = self._group(step), self._coming, {}
        if group.start not in self._held:
            self._follow()
            self._held = _held(self._draw(group), step)
        after = step - step % (self._uses * self._ahead) + self._uses * self._ahead
        if self._asynchronous and after < self._num_steps:
            self._follow()
            self._flight = _Flight(self._draw, self._group(after), step)

    def _land(self) -> None:
        """Wait for the draw under way, if any, and keep what it drew."""
        flight, self._flight = self._flight, None
        if flight is not None:
            self._coming = flight.result()


class _Flight:
    """A draw in the background. The thread is a daemon: a run that is stopped does not wait for it."""

    def __init__(self, draw: Draw, group: range, writer: int) -> None:
        self._draw, self._group, self._writer = draw, group, writer
        self._drawn: dict[int, Batch] = {}
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="recoup-rollouts", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when the draw has ended, well or not."""
        self._thread.join()

    def result(self) -> dict[int, Held]:
        """What was drawn.

        Raises:
            Whatever the draw raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return _held(self._drawn, self._writer)

    def _run(self) -> None:
        try:
            self._drawn = self._draw(self._group)
        except BaseException as error:  # raised again where the rollouts are asked for
            self._error = error


def named_tensors(parts: Mapping[tuple[int, int], Rollouts]) -> dict[str, Tensor]:
    """Copies of the rollouts' tensors, named step.term.field."""
    return {
        f"{step}.{term}.{name}": tensor.clone(memory_format=torch.contiguous_format)
        for (step, term), rollouts in parts.items()
        for name, tensor in _tensors(rollouts).items()
    }


def parts_of(tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], Rollouts]:
    """What `named_tensors` named, by step and term; the tensors stay where they are."""
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        matched = TENSOR_NAME.fullmatch(name)
        assert matched, f"{name}: no tensor of a rollout buffer"
        found.setdefault((int(matched[1]), int(matched[2])), {})[matched[3]] = tensor
    return {place: Rollouts(**values) for place, values in found.items()}


def _tensors(rollouts: Rollouts) -> dict[str, Tensor]:
    values = {field.name: getattr(rollouts, field.name) for field in fields(rollouts)}
    return {name: value for name, value in values.items() if value is not None}


def _record(held: Mapping[int, Held]) -> list[dict[str, int]]:
    return [{"step": step, "writer": item.writer, "terms": len(item.batch)} for step, item in held.items()]


def _batches(record: Sequence[Mapping[str, int]], found: Mapping[tuple[int, int], Rollouts]) -> dict[int, Held]:
    batches = {}
    for item in record:
        batch = [found.get((item["step"], term)) for term in range(item["terms"])]
        batches[item["step"]] = Held(batch, item["writer"])
    return batches


def _held(drawn: Mapping[int, Batch], writer: int) -> dict[int, Held]:
    return {step: Held(batch, writer) for step, batch in drawn.items()}
