"""A sweep's leaderboard: one row per injury, variant and method, over its seeds.

Intervals are 95%. Those of scores are over seeds and items (`recoup.evaluate.seeds`); those of fidelity over seeds and prompts
(`recoup.sweep.pooled`). A score of several tasks is their mean, each task counting the same.
"""

from typing import Final

from recoup.results.base import Estimate, Record, Result

OURS: Final = "onpolicy"  # the method that every row is held against


class MethodRow(Record):
    """One injury, variant and method, over the seeds that are done."""

    injury: str
    variant: str | None
    method: str
    num_seeds: int
    general: Estimate | None  # mean score over the general tasks; none where no such task was scored
    general_fraction: Estimate | None  # recovered fraction; none where the damage is not significant
    task: Estimate | None  # score on the task that the damaging step taught
    task_fraction: Estimate | None  # as general_fraction
    against: (
        Estimate | None
    )  # onpolicy minus this method, general score, paired by seed and item: above 0, onpolicy wins
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
    """What is done of a sweep. By injury: the mean score over general tasks, and that of the injury's own task."""

    name: str
    rows: tuple[MethodRow, ...]
    skipped: dict[str, str]  # run name → why it is impossible
    failed: dict[str, str]  # run name → error line
    reference: dict[str, Estimate]
    degraded: dict[str, Estimate]
    reference_task: dict[str, Estimate]
    degraded_task: dict[str, Estimate]
    seconds: float  # that the sweep ran, all its sittings together
