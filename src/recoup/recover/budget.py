"""What a repair has spent, so that methods can be compared at equal tokens and equal time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recoup.config import Budget


@dataclass(frozen=True)
class Spent:
    """Since the start; steps taken again after a roll-back count once."""

    tokens: int = 0  # completion tokens trained on
    seconds: float = 0.0  # of sampling, teacher, student and optimizer; the mean over processes

    def after(self, tokens: int, seconds: float) -> "Spent":
        """One step later."""
        return Spent(self.tokens + tokens, self.seconds + seconds)

    def share(self, budget: Budget | None) -> float:
        """Of the budget, whichever part of it is further spent; 1 and more: the repair is over. 0 without a budget."""
        if budget is None:
            return 0.0
        limits = (self.tokens, budget.tokens), (self.seconds, budget.seconds)
        return max(spent / limit for spent, limit in limits if limit is not None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal value back."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Spent":
        """What `to_dict` wrote."""
        return cls(saved["tokens"], saved["seconds"])
