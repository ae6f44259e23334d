"""What happened, in sentences built from the numbers; as plain when nothing came back as when everything did."""

from collections import Counter
from dataclasses import dataclass

from recoup.report.gather import Run
from recoup.report.words import counted, significant, significant_interval
from recoup.results import TaskComparison, TokenDamage


@dataclass(frozen=True)
class Headline:
    """The title of the page and the sentences under it."""

    title: str
    sentences: tuple[str, ...]


def headline(run: Run) -> Headline:
    """What damage, what came back: token divergence before and after, and how many benchmarks healed."""
    parts = [_fidelity_title(*run.fidelity), _benchmarks_title(run)]
    sentences = [_fidelity_sentence(*run.fidelity), _newly_damaged(run)]
    return Headline(
        title=f"{_cause(run)}: {'; '.join(part for part in parts if part)}.",
        sentences=tuple(sentence for sentence in sentences if sentence),
    )


def _cause(run: Run) -> str:
    if not run.injuries:
        return "Damaged before this run"
    return f"Damaged by {', then '.join(injury.method for injury in run.injuries)}"


def _fidelity_title(before: TokenDamage | None, after: TokenDamage | None) -> str:
    if before is None or after is None:
        known = before or after
        if known is None:
            return ""
        state = "degraded" if before else "recovered"
        return f"token KL from the reference to the {state} model is {significant(known.token_kl_nats.value)} nats"
    old, new = before.token_kl_nats, after.token_kl_nats
    values = f"from {significant(old.value)} to {significant(new.value)} nats"
    if new.high < old.low:
        return f"token KL to the reference fell {values}"
    if new.low > old.high:
        return f"token KL to the reference rose {values}"
    return f"token KL to the reference went {values}, which their intervals do not tell apart"


def _benchmarks_title(run: Run) -> str:
    if run.evaluation is None:
        return "benchmarks were not run"
    tasks = run.evaluation.tasks
    damaged = [task for task in tasks if task.damage_significant]
    if not tasks:
        return "no benchmark was evaluated"
    if not damaged:
        return f"no significant damage on {counted(len(tasks), 'benchmark')}, so none to heal"
    if all(task.recovered is None for task in damaged):
        return f"{len(damaged)} of {counted(len(tasks), 'benchmark')} significantly damaged, no repair evaluated"
    return _healing(damaged)


def _healing(damaged: list[TaskComparison]) -> str:
    count = Counter(task.verdict for task in damaged)
    of = counted(len(damaged), "significantly damaged benchmark")
    if not count["healed"] and not count["partly healed"]:
        return f"nothing came back on {of}"
    outcomes = [f"{count[v]} {v}" for v in ("healed", "partly healed", "not healed") if count[v]]
    return f"of {of}, {', '.join(outcomes)}"


def _fidelity_sentence(before: TokenDamage | None, after: TokenDamage | None) -> str:
    measured = [
        f"{state} {significant_interval(damage.token_kl_nats)}"
        for state, damage in (("degraded", before), ("recovered", after))
        if damage is not None
    ]
    if not measured:
        return "Token KL was not measured."
    return f"Token KL in nats per token, with its 95% interval: {', '.join(measured)}."


def _newly_damaged(run: Run) -> str:
    tasks = run.evaluation.tasks if run.evaluation else ()
    names = [task.task for task in tasks if task.verdict == "newly damaged"]
    return f"The repair newly damaged {counted(len(names), 'benchmark')}: {', '.join(names)}." if names else ""
