"""Where a recovery stands, beside its weights: what a checkpoint keeps as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recoup.recover.balance import Balance, Ratio
from recoup.recover.bootstrap import Phase
from recoup.recover.budget import Spent
from recoup.recover.collapse import Watch
from recoup.recover.looks import Looks


@dataclass(frozen=True)
class Position:
    """`step` is the next step to take; `roll_backs` how often the run went back to a checkpoint."""

    step: int = 0
    phase: Phase = field(default_factory=Phase)
    watch: Watch = field(default_factory=Watch)
    balance: Balance = field(default_factory=Balance)
    ratio: Ratio = field(default_factory=Ratio)
    looks: Looks = field(default_factory=Looks)
    spent: Spent = field(default_factory=Spent)
    roll_backs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal position back."""
        return {
            "step": self.step,
            "on_policy_from": self.phase.on_policy_from,
            "watch": self.watch.to_dict(),
            "balance": self.balance.to_dict(),
            "log_ratio": self.ratio.log_ratio,
            "looks": self.looks.to_dict(),
            "spent": self.spent.to_dict(),
            "roll_backs": self.roll_backs,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Position":
        """The position that `to_dict` wrote."""
        return cls(
            saved["step"],
            Phase(saved["on_policy_from"]),
            Watch.from_dict(saved["watch"]),
            Balance.from_dict(saved["balance"]),
            Ratio(saved["log_ratio"]),
            Looks.from_dict(saved["looks"]),
            Spent.from_dict(saved["spent"]),
            saved["roll_backs"],
        )
