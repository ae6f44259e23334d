"""The proof: scores by item, comparisons, samples."""

from typing import Any, Final, Literal

from pydantic import Field

from recoup.results.base import Estimate, Record, Result
from recoup.results.fidelity import TokenDamage

MEAN_LOGP: Final = "logp_per_token"  # the score of a text (perplexity): mean log p of a token, nats


class TaskItems(Record):
    """One model on one task; the items pair models with each other."""

    task: str
    metric: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]  # one per item, higher is better
    further: dict[str, tuple[float, ...]] = Field(default_factory=dict)  # other named scores, one per item each
    ceilings: dict[str, float] = Field(default_factory=dict)  # what the gold answers score, by named score
    samples: tuple[dict[str, Any], ...] = ()  # a few, for the report


class ModelScores(Result):
    """One model on every task, and its fidelity to the reference (null for the reference itself)."""

    model: str
    tasks: tuple[TaskItems, ...]
    fidelity: TokenDamage | None = None
    seconds: float


class TaskComparison(Record):
    """Reference, degraded and recovered on one task, paired by item."""

    task: str
    metric: str
    num_items: int
    reference: Estimate
    degraded: Estimate
    recovered: Estimate | None
    damage: Estimate  # degraded − reference
    gain: Estimate | None  # recovered − degraded
    remaining: Estimate | None  # recovered − reference
    recovered_fraction: Estimate | None  # only where the damage is significant
    damage_significant: bool  # Holm-corrected McNemar/bootstrap p < 0.05 over the tasks
    verdict: Literal["healed", "partly healed", "not healed", "preserved", "newly damaged", "damaged", "unharmed"]


class Generation(Record):
    """One prompt and what each model says to it, greedily."""

    prompt: str
    reference: str
    degraded: str
    recovered: str | None


class EvaluateResult(Result):
    """The proof."""

    reference: str
    tasks: tuple[TaskComparison, ...]
    degraded_fidelity: TokenDamage
    recovered_fidelity: TokenDamage | None
    generations: tuple[Generation, ...]
    num_bootstrap: int
    seconds: float
