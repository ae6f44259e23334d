"""What a step measures: seconds by part, and sums over its micro-batches, terms and processes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum, auto

import torch
from torch import Tensor

from recoup.recover import balance
from recoup.training.processes import Processes

PARTS = ("sampling", "teacher", "student", "optimizer")


@dataclass
class Clock:
    """Seconds by part of a step; on an accelerator a part ends when its work is done."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the time inside the `with` to a part."""
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[part] += time.perf_counter() - began

    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def metrics(self) -> dict[str, float]:
        """As `metrics.jsonl` names them."""
        return {f"seconds_{part}": seconds for part, seconds in self.seconds.items()}


class Column(IntEnum):
    """What is summed for each term."""

    LOSS = 0  # weighted divergences, the term's share of the step's loss
    NATS = auto()  # divergences of tokens, unweighted
    TOKENS = auto()  # that were scored
    SQUARES = auto()  # of gradient norms, and
    WEIGHTS = auto()  # of tokens, for `balance`
    HIDDEN = auto()  # the hidden-state term
    EFFECTIVE = auto()  # tokens, as importance weights make them count


@dataclass(frozen=True)
class Sums:
    """A row per term, a column per `Column`; micro-batches and processes add up."""

    table: Tensor  # float64

    @classmethod
    def start(cls, num_terms: int) -> "Sums":
        """Nothing yet."""
        return cls(torch.zeros(num_terms, len(Column), dtype=torch.float64))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.table + other.table)

    def plus(self, term: int, values: dict[Column, float]) -> "Sums":
        """With one micro-batch of a term."""
        table = self.table.clone()
        for column, value in values.items():
            table[term, column] += value
        return Sums(table)

    def over(self, processes: Processes) -> "Sums":
        """The sums of all processes."""
        return Sums(torch.tensor(processes.sum(self.table.flatten().tolist())).view_as(self.table))

    def gradient_norms(self) -> list[float | None]:
        """A term's gradient norm a token; null where it had none."""
        pairs = self.table[:, [Column.SQUARES, Column.WEIGHTS]].tolist()
        return [balance.norm(squares, weights) for squares, weights in pairs]

    def sides(self) -> tuple[float, float]:
        """The step's loss without the hidden-state term, and that term."""
        totals = self.table.sum(0)
        return float(totals[Column.LOSS]), float(totals[Column.HIDDEN])

    def metrics(self) -> dict[str, object]:
        """As `metrics.jsonl` names them."""
        loss, nats, tokens, _, _, hidden, effective = self.table.sum(0).tolist()
        means = [row[Column.NATS] / row[Column.TOKENS] if row[Column.TOKENS] else None for row in self.table.tolist()]
        return {
            "loss": loss + hidden,
            "kl": nats / max(1.0, tokens),
            "term_nats": tuple(means),
            "hidden_loss": hidden or None,
            "effective_share": effective / tokens if effective else None,
        }
