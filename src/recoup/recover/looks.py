"""What the looks at a student during its repair mean for the run: when to stop, and which student was the best.

- Recovered: token KL has fallen to a given share of what it was at the start.
- Newly damaged: on a group of prompts or a benchmark the student is significantly worse than at the start, at several looks in a
  row. Worse is a two-sided test paired by prompt or item, Holm-corrected over the groups and benchmarks of the look
  (`evaluate.statistics`); of fewer than six prompts no outcome is significant (2 / 2⁵ = 0.06). Prompts without groups are
  one group.
- Best: the lowest token KL among the looks at which nothing was newly damaged, the start among them.

Everything here follows from the looks alone, so that a run that continues decides as one that was never stopped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recoup.config import Probe
from recoup.evaluate.statistics import SIGNIFICANT, holm, paired_p_value

NUM_RESAMPLES = 2000  # sign flips: p is known to 0.005 at 0.05
SIGN_SEED = 0  # which sign flips: the same at every look

Marks = Mapping[str, Sequence[float]]  # what is judged, by name: a number a prompt or item, higher is better


@dataclass(frozen=True)
class Looks:
    """The looks so far, in what matters later; kept in checkpoints."""

    last: int | None = None  # step of the last look: optimizer steps taken before
    start_kl: float | None = None  # token KL at the first look, nats
    start: Marks = field(default_factory=dict)
    best: int | None = None  # step
    best_kl: float | None = None
    worse: Mapping[str, int] = field(default_factory=dict)  # looks in a row at which it was newly damaged, if any
    stopped: str | None = None  # why the run stops, in one sentence

    def after(self, rule: Probe, step: int, token_kl: float, marks: Marks) -> "Looks":
        """With one more look.

        Args:
            rule: what stops a run.
            step: optimizer steps taken before the look.
            token_kl: mean over all prompts' tokens, nats.
            marks: of the same things and items at every look.
        """
        first = self.start_kl is None
        start_kl, start = (token_kl, marks) if self.start_kl is None else (self.start_kl, self.start)
        damaged = () if first else newly_damaged(start, marks)
        worse = {name: self.worse.get(name, 0) + 1 for name in damaged}
        is_best = not damaged and token_kl < (
            math.inf if self.best_kl is None else self.best_kl
        )  # never where it is NaN
        stopped = None if first else _recovered(rule, step, token_kl, start_kl) or _damaged(rule, step, worse)
        best, best_kl = (step, token_kl) if is_best else (self.best, self.best_kl)
        return Looks(step, start_kl, start, best, best_kl, worse, stopped)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives equal looks back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Looks":
        """The looks that `to_dict` wrote."""
        return cls(**{**saved, "start": {name: tuple(values) for name, values in saved["start"].items()}})


def newly_damaged(start: Marks, now: Marks) -> tuple[str, ...]:
    """Names of what is significantly worse now than at the start."""
    pairs = [(np.array(now[name], dtype=float), np.array(start[name], dtype=float)) for name in start]
    p_values = holm([paired_p_value(*pair, NUM_RESAMPLES, SIGN_SEED) for pair in pairs])
    judged = zip(start, pairs, p_values, strict=True)
    return tuple(name for name, (new, old), p in judged if p < SIGNIFICANT and new.mean() < old.mean())


def _recovered(rule: Probe, step: int, now: float, start: float) -> str | None:
    if rule.recovered_at == 0 or now > rule.recovered_at * start:
        return None
    return f"recovered at step {step}: token KL {now:.3g} nats, at the start {start:.3g} (recovered_at {rule.recovered_at:g})"


def _damaged(rule: Probe, step: int, worse: Mapping[str, int]) -> str | None:
    names = [name for name, times in worse.items() if times >= rule.patience]
    if not names:
        return None
    return (
        f"newly damaged at step {step}: {', '.join(names)}, worse than at the start at {rule.patience} looks in a row"
    )
