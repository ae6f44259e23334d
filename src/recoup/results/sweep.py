"""A sweep's leaderboard: one row per injury, variant and method, over its seeds.

Intervals are 95%. Those of scores are over seeds and items (`recoup.evaluate.seeds`); those of fidelity over seeds and prompts
(`recoup.sweep.pooled`). A score of several tasks is their mean, each task counting the same.
"""

from recoup.results.base import Estimate, Record, Result


class Before(Record):
    """What a method starts from and what it should come back to, by one measure."""

    reference: Estimate
    degraded: Estimate


class Measured(Record):
    """One method by one measure."""

    score: Estimate
    fraction: Estimate | None  # recovered fraction; none where the damage is not significant
    against: Estimate | None  # ours minus this row, paired by seed and item: above 0, ours wins; none for ours


class BeforeRepair(Record):
    """An injury by each measure; none where no such task was scored."""

    general: Before | None  # mean over the benchmarks that no injury taught and whose scores are shares
    text: Before | None  # mean over the texts, log p of a token in nats
    task: Before | None  # the task that the damaging step taught


class MethodRow(Record):
    """One injury, variant and method, over the seeds that are done; measures as in `BeforeRepair`."""

    injury: str
    variant: str | None
    method: str
    ours: bool  # what the injury's other rows are held against: its first on-policy method, with the first variant
    num_seeds: int
    general: Measured | None
    text: Measured | None
    task: Measured | None
    token_kl_nats: Estimate  # KL(reference ‖ recovered)
    top1_agreement: Estimate
    cka: float | None  # debiased linear CKA with the reference after the repair, mean over blocks
    num_tokens: float  # completion tokens trained on; this and what follows are means over seeds
    minutes: float  # of the repair
    peak_memory_bytes: float
    structure_exact: bool  # in every seed
    runs: tuple[str, ...]  # names of run folders
    newly_damaged: (
        int  # items of general tasks that both the reference and the damaged model got right, and this one not
    )


class SweepResult(Result):
    """What is done of a sweep."""

    name: str
    rows: tuple[MethodRow, ...]
    skipped: dict[str, str]  # run name → why it is impossible
    failed: dict[str, str]  # run name → error line
    before: dict[str, BeforeRepair]  # by injury
    seconds: float  # that the sweep ran, all its sittings together
