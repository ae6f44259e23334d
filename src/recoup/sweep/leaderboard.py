"""A sweep's records as rows: each injury, variant and method over the seeds that are done.

Three measures. General ability is the mean over the benchmarks that no injury of the sweep taught and whose scores are shares
(0 to 1). Log probabilities have no common scale with them: those of texts (perplexity) are a measure of their own, far finer
than benchmarks of a few hundred items. The third is the task that the damage taught. Reference and damaged model are those of
the runs without repair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recoup.config.sweep import Sweep
from recoup.evaluate.compare import DEGRADED, RECOVERED, REFERENCE
from recoup.evaluate.seeds import ScoresSKI
from recoup.results import Estimate
from recoup.results.evaluate import MEAN_LOGP
from recoup.results.sweep import Before, BeforeRepair, Measured, MethodRow, SweepResult
from recoup.run_folder import RunFolder
from recoup.sweep.expand import NONE, PLAIN, Plan, methods_of
from recoup.sweep.pooled import Pooled, over_seeds, pooled
from recoup.sweep.proof import Proof, Wanted, finished, stacked

FEWEST_DRAWS = 10_000  # over several seeds, whose draws have heavy tails (`recoup.evaluate.seeds`)
SECONDS_PER_MINUTE = 60

Group = tuple[str, str | None, str]  # injury, variant, method
Names = tuple[str, ...]  # of runs


@dataclass(frozen=True)
class Measures:
    """The scores that each measure is the mean of; of none, where nothing of the kind was scored."""

    general: Sequence[Wanted]
    text: Sequence[Wanted]
    task: Sequence[Wanted]


class Leaderboard:
    """Rows of what is done; a row is worked out again only when its runs are others than before."""

    def __init__(self, sweep: Sweep, plan: Plan, root: Path) -> None:
        self._sweep, self._plan, self._root = sweep, plan, root
        self._taught = {injury.task for injury in sweep.injuries.values()}
        self._rows: dict[Names, MethodRow] = {}
        self._before: dict[Names, BeforeRepair] = {}

    def result(self, failed: Mapping[str, str], seconds: float) -> SweepResult:
        """The leaderboard now.

        Args:
            failed: by run name, why.
            seconds: that the sweep ran.

        Raises:
            DataError: a record cannot be read, runs were not scored on the same items, or a task lacks the score that its
                injury names.
        """
        groups = self._groups()
        return SweepResult(
            name=self._sweep.name,
            rows=tuple(self._row(group, groups) for group in groups),
            skipped=self._plan.skipped,
            failed=dict(failed),
            before={group[0]: self._before_repair(proofs) for group, proofs in groups.items() if group[2] == NONE},
            seconds=seconds,
        )

    def _groups(self) -> dict[Group, list[Proof]]:
        """Finished runs by what they share, injuries in the order of the config, the runs without repair first."""
        groups: dict[Group, list[Proof]] = {}
        for run in self._plan.runs:
            folder, baseline = (RunFolder(self._root / name) for name in (run.name, run.baseline or run.name))
            if finished(folder) and finished(baseline):
                groups.setdefault((run.injury, run.variant, run.method), []).append(Proof(run, folder, baseline))
        order = list(self._sweep.injuries)
        return dict(sorted(groups.items(), key=lambda group: order.index(group[0][0])))

    def _row(self, group: Group, groups: Mapping[Group, Sequence[Proof]]) -> MethodRow:
        ours = self._ours(group[0])
        proofs, against = groups[group], () if group == ours else groups.get(ours, ())
        key = _names([*proofs, *against])
        if key not in self._rows:
            self._rows[key] = _row(proofs, against, self._measures(proofs), ours=group == ours)
        return self._rows[key]

    def _ours(self, injury: str) -> Group:
        """What an injury's other rows are held against: the first on-policy method listed, with the first variant."""
        method = next((name for name in methods_of(self._sweep, injury) if name.startswith(PLAIN)), PLAIN)
        return injury, next(iter(self._sweep.variants), None), method

    def _before_repair(self, proofs: Sequence[Proof]) -> BeforeRepair:
        key = _names(proofs)
        if key not in self._before:
            measures = self._measures(proofs)
            self._before[key] = BeforeRepair(
                general=_before(proofs, measures.general),
                text=_before(proofs, measures.text),
                task=_before(proofs, measures.task),
            )
        return self._before[key]

    def _measures(self, proofs: Sequence[Proof]) -> Measures:
        models = [model for proof in proofs for model in proof.scores]
        untaught = [name for name in models[0] if name not in self._taught]
        shares = [name for name in untaught if all(0 <= score <= 1 for model in models for score in model[name].scores)]
        texts = [name for name in untaught if models[0][name].metric == MEAN_LOGP]
        injury = self._sweep.injuries[proofs[0].planned.injury]
        return Measures(
            general=[Wanted(name) for name in shares],
            text=[Wanted(name) for name in texts],
            task=[] if injury.task is None else [Wanted(injury.task, injury.task_score)],
        )


def _names(proofs: Sequence[Proof]) -> Names:
    return tuple(proof.planned.name for proof in proofs)


def _before(proofs: Sequence[Proof], wanted: Sequence[Wanted]) -> Before | None:
    found = _pooled(proofs, stacked(proofs, wanted))
    return Before(reference=found.model(REFERENCE), degraded=found.model(DEGRADED)) if found else None


def _row(proofs: Sequence[Proof], against: Sequence[Proof], measures: Measures, *, ours: bool) -> MethodRow:
    run, repairs = proofs[0].planned, [proof.repair for proof in proofs]
    general_scores = stacked(proofs, measures.general)
    ckas = [proof.cka for proof in proofs if proof.cka is not None]
    return MethodRow(
        injury=run.injury,
        variant=run.variant,
        method=run.method,
        ours=ours,
        num_seeds=len(proofs),
        general=_measured(proofs, against, measures.general),
        text=_measured(proofs, against, measures.text),
        task=_measured(proofs, against, measures.task),
        token_kl_nats=over_seeds([proof.fidelity.token_kl_nats for proof in proofs]),
        top1_agreement=over_seeds([proof.fidelity.top1_agreement for proof in proofs]),
        cka=float(np.mean(ckas)) if ckas else None,
        num_tokens=_mean([repair.num_tokens for repair in repairs]),
        minutes=_mean([repair.seconds for repair in repairs]) / SECONDS_PER_MINUTE,
        peak_memory_bytes=_mean([repair.peak_memory_bytes for repair in repairs]),
        structure_exact=all(repair.structure_exact for repair in repairs),
        runs=_names(proofs),
        newly_damaged=round(sum(_newly_damaged(scores) for scores in general_scores) / len(proofs)),
    )


def _measured(proofs: Sequence[Proof], ours: Sequence[Proof], wanted: Sequence[Wanted]) -> Measured | None:
    found = _pooled(proofs, stacked(proofs, wanted))
    if found is None:
        return None
    return Measured(score=found.model(RECOVERED), fraction=found.fraction(), against=_against(ours, proofs, wanted))


def _pooled(proofs: Sequence[Proof], tasks: list[ScoresSKI]) -> Pooled | None:
    """None where nothing was scored."""
    evaluate = proofs[0].planned.config.evaluate
    num_draws = evaluate.num_bootstrap if len(proofs) == 1 else max(evaluate.num_bootstrap, FEWEST_DRAWS)
    return pooled(tasks, num_draws, evaluate.seed) if tasks else None


def _against(ours: Sequence[Proof], theirs: Sequence[Proof], wanted: Sequence[Wanted]) -> Estimate | None:
    """Ours minus theirs over the seeds that both have, paired by seed and item."""
    by_seed = {proof.planned.seed: proof for proof in ours}
    pairs = [(by_seed[proof.planned.seed], proof) for proof in theirs if proof.planned.seed in by_seed]
    if not pairs:
        return None
    first, second = (list(side) for side in zip(*pairs, strict=True))
    both = [
        np.stack([one_SKI[:, RECOVERED], other_SKI[:, RECOVERED]], axis=1)
        for one_SKI, other_SKI in zip(stacked(first, wanted), stacked(second, wanted), strict=True)
    ]
    found = _pooled(first, both)
    return None if found is None else found.difference(0, 1)


def _newly_damaged(scores_SKI: ScoresSKI) -> int:
    """Items, over all seeds, that were right before and after the damage and are wrong after the repair."""
    if not np.isin(scores_SKI, (0, 1)).all():
        return 0  # a probability has no line between right and wrong
    right = scores_SKI == 1
    return int((right[:, REFERENCE] & right[:, DEGRADED] & ~right[:, RECOVERED]).sum())


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
