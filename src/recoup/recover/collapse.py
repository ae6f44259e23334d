"""Is the student's own writing collapsing? Length, repetition and entropy of what it samples, watched over a window of steps.

Three ways in which on-policy training goes wrong and feeds itself: completions shrink to nothing, run into loops, or lose
all variety. Each is a number of the sampled completions:

- length: mean over completions of min(length, cap). The cap is the length allowed at the first step, the same for the whole
  run: with short-to-long rollouts later completions may be longer, and a few long ones must not hide many empty ones.
- repetition: share of 4-grams that stood in the same completion before. Completions of fewer than 4 tokens have none.
- entropy: mean −log p of the drawn tokens under the distribution they were drawn from. Its expectation is the mean entropy
  of that distribution over the places visited, so no distribution has to be looked at.

Length and entropy are judged against the run's own first on-policy steps: answers that end early by nature set a low mark.
Repetition has a bound of its own, or half-way from the run's least to everything, where that is more: a student that repeats
itself from the start is damaged, and one whose teacher repeats itself learns it; neither has collapsed. Steps on
teacher-written text say nothing of the student and are not shown to the watch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from recoup.config import Guards
from recoup.diagnose.formats import repeats
from recoup.models.sample import Rollouts


@dataclass(frozen=True)
class Vitals:
    """One step's signs of life."""

    length: float  # tokens, clipped at the cap
    repetition: float  # share of 4-grams, 0 to 1
    entropy: float | None  # nats a token; null where the sampler gives no log-probabilities


@dataclass(frozen=True)
class Tally:
    """Sums over completions. Those of terms and processes add up, so that any split of a batch gives the same vitals."""

    num_completions: float = 0.0
    clipped_tokens: float = 0.0
    num_grams: float = 0.0
    repeated_grams: float = 0.0
    known_tokens: float = 0.0  # with a log-probability
    surprisal_nats: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        mine, theirs = asdict(self), asdict(other)
        return Tally(**{name: mine[name] + theirs[name] for name in mine})

    def over(self, add_up: Callable[[Sequence[float]], list[float]]) -> "Tally":
        """The tally of all processes; `add_up` sums each number over them."""
        mine = asdict(self)
        return Tally(**dict(zip(mine, add_up(list(mine.values())), strict=True)))

    def vitals(self) -> Vitals:
        """Means of what was added up; at least one completion."""
        return Vitals(
            self.clipped_tokens / self.num_completions,
            self.repeated_grams / self.num_grams if self.num_grams else 0.0,
            self.surprisal_nats / self.known_tokens if self.known_tokens else None,
        )


def tally(rollouts: Rollouts, logp_BT: Float[Tensor, "B T"] | None, cap: int) -> Tally:
    """Sums over the completions of `rollouts`.

    Args:
        rollouts: what the student wrote.
        logp_BT: log-probability that each completion token was drawn with, nats; anything elsewhere. Null: unknown.
        cap: lengths count up to this many tokens; the completion length allowed at the first step.
    """
    completions = rollouts.completions()
    repeated, grams = repeats(completions)
    return Tally(
        num_completions=float(len(completions)),
        clipped_tokens=float(sum(min(len(ids), cap) for ids in completions)),
        num_grams=float(grams),
        repeated_grams=float(repeated),
        known_tokens=0.0 if logp_BT is None else float(sum(map(len, completions))),
        surprisal_nats=0.0 if logp_BT is None else -float(logp_BT[rollouts.completion_BT].double().sum()),
    )


@dataclass(frozen=True)
class Watch:
    """The first on-policy steps' vitals and the last ones'; kept in checkpoints, so a roll-back goes back here too."""

    first: tuple[Vitals, ...] = ()
    last: tuple[Vitals, ...] = ()
    step: int | None = None  # the last step seen
    least_repetition: float = 1.0  # mean of the window that had the least

    def after(self, rule: Guards, step: int, vitals: Vitals) -> "Watch":
        """The watch with one more on-policy step; a step that it has seen already changes nothing."""
        if self.step is not None and step <= self.step:
            return self
        first = self.first if len(self.first) >= rule.window else (*self.first, vitals)
        last = (*self.last, vitals)[-rule.window :]
        least = self.least_repetition
        if len(last) == rule.window:
            least = min(least, fmean(v.repetition for v in last))
        return Watch(first, last, step, least)

    def verdict(self, rule: Guards) -> str | None:
        """Which bound the last `rule.window` steps broke, and by how much, in one sentence; null while all is well."""
        if len(self.last) < rule.window:
            return None
        steps = f"over the {rule.window} steps up to step {self.step}"
        return (
            _too_low(
                "mean completion length", "tokens", _lengths(self.first), _lengths(self.last), rule.min_length, steps
            )
            or _too_low("mean entropy", "nats", _entropies(self.first), _entropies(self.last), rule.min_entropy, steps)
            or self._repeats_too_much(rule, steps)
        )

    def _repeats_too_much(self, rule: Guards, steps: str) -> str | None:
        share, least = fmean(vitals.repetition for vitals in self.last), self.least_repetition
        most = max(rule.max_repetition, (1 + least) / 2)
        if share <= most:
            return None
        return (
            f"{share:.1%} of 4-grams repeat {steps}, at best {least:.1%} did; guards.max_repetition allows {most:.0%}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal watch back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Watch":
        """The watch that `to_dict` wrote."""
        first, last = (tuple(Vitals(**vitals) for vitals in saved[name]) for name in ("first", "last"))
        return cls(first, last, saved["step"], saved["least_repetition"])


def _lengths(steps: Sequence[Vitals]) -> list[float]:
    return [vitals.length for vitals in steps]


def _entropies(steps: Sequence[Vitals]) -> list[float]:
    return [vitals.entropy for vitals in steps if vitals.entropy is not None]


def _too_low(
    what: str, unit: str, first: Sequence[float], last: Sequence[float], least: float, steps: str
) -> str | None:
    if not first or not last:
        return None
    reference, now = fmean(first), fmean(last)
    if now >= least * reference:  # not so for NaN: a broken number is a collapse
        return None
    share = now / reference
    return (
        f"{what} {steps} is {now:.3g} {unit}, {share:.1%} of the first on-policy steps' {reference:.3g}; "
        f"guards.min_{'length' if unit == 'tokens' else 'entropy'} allows {least:.0%}"
    )
