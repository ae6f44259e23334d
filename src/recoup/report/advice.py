"""What to do next, from the records of a run: rules that a person would follow, in the order in which they matter."""

from collections.abc import Sequence
from itertools import pairwise

from recoup.report.gather import Run
from recoup.report.words import listed, significant
from recoup.results import RecoverResult, TaskComparison

MOST_NAMED = 4  # benchmarks that a sentence names
TRAINED_AFTER = {"interpolate": "onpolicy_interpolated", "rounding": "onpolicy_rounded"}
COMPRESSING = ("quantize", "magnitude", "wanda", "sparsegpt")  # injuries that `rounding` can do better


def advice(run: Run) -> list[str]:
    """Sentences; at least one."""
    if run.recovery is None:
        return [*_triage(run), "Repair the model: run the recover stage of this run."]
    broken = (
        "Do not use this model: it has left the structure it was to keep." if not run.recovery.structure_exact else ""
    )
    if run.evaluation is None:
        return [broken, "Run the evaluation: nothing is proved without it."]
    return [broken, *_after(run, run.recovery, run.evaluation.tasks)]


def _triage(run: Run) -> list[str]:
    """What a triage of the damaged model said, where one was made."""
    if run.triage is None:
        return []
    command = f" Its command: {run.triage.command}." if run.triage.command else ""
    return [f"The triage says: {run.triage.verdict}. {run.triage.reason}{command}"]


def _after(run: Run, recovery: RecoverResult, tasks: Sequence[TaskComparison]) -> list[str]:
    unclear = [task.task for task in tasks if task.verdict == "not healed" and _tells_nothing(task)]
    lacking = [
        task.task for task in tasks if task.verdict in ("not healed", "partly healed") and task.task not in unclear
    ]
    worse = [task for task in tasks if task.verdict == "newly damaged"]
    sentences = [
        _worse([task.task for task in worse if task.damage.low <= 0], recovery),
        _task_lost([task.task for task in worse if task.damage.low > 0]),
        _not_healed(lacking, run, recovery),
        f"What came back on {listed(unclear, MOST_NAMED)} cannot be told: evaluate more items (evaluate.limit)."
        if unclear
        else "",
        *(_triage(run) if lacking else []),
    ]
    return sentences if any(sentences) else [_finished(tasks, recovery)]


def _tells_nothing(task: TaskComparison) -> bool:
    """Whether nothing and everything may have come back, for all that the interval says."""
    fraction = task.recovered_fraction
    return fraction is not None and fraction.low <= 0 and fraction.high >= 1


def _worse(names: Sequence[str], recovery: RecoverResult) -> str:
    if not names:
        return ""
    milder = "take fewer steps or a lower recover.learning_rate" if recovery.steps else "choose another method"
    return (
        f"The repair harmed {listed(names, MOST_NAMED)}: {milder}, or give it prompts of that kind with a teacher that is good "
        "at it (a term of recover.terms)."
    )


def _task_lost(names: Sequence[str]) -> str:
    if not names:
        return ""
    return (
        f"The repair undid what the damaging step had taught ({listed(names, MOST_NAMED)}): add a term of recover.terms whose "
        "teacher is the model after that step, on prompts of that task."
    )


def _not_healed(names: Sequence[str], run: Run, recovery: RecoverResult) -> str:
    if not names:
        return ""
    missing = listed(names, MOST_NAMED)
    if not recovery.steps:
        trained = TRAINED_AFTER.get(recovery.method, "onpolicy")
        return (
            f"{missing} did not come back whole, and {recovery.method} trains nothing: repair with method: {trained}."
        )
    if _still_falling(run):
        return (
            f"{missing} did not come back whole, and the held-out token KL was still falling at the end "
            f"({significant(run.probe[-2].token_kl_nats.value)} to {significant(run.probe[-1].token_kl_nats.value)} nats): "
            "train longer (recover.steps)."
        )
    if recovery.method == "onpolicy" and run.injuries and run.injuries[-1].method in COMPRESSING:
        return (
            f"{missing} did not come back whole: compress the earlier model better to the same format first (method: "
            "onpolicy_rounded), or train longer (recover.steps)."
        )
    return (
        f"{missing} did not come back whole: train longer (recover.steps), or teach from a checkpoint that is better at it "
        "(recoup diagnose compares a history of them)."
    )


def _still_falling(run: Run) -> bool:
    """Whether the last two looks of the probe are apart by more than their intervals."""
    looks = [look.token_kl_nats for look in run.probe[-2:]]
    return any(last.high < before.low for before, last in pairwise(looks))


def _finished(tasks: Sequence[TaskComparison], recovery: RecoverResult) -> str:
    use = f"Use the model as it is: {recovery.checkpoint} (recoup export writes it for vLLM or llama.cpp)."
    if not tasks:
        return f"Evaluate benchmarks (evaluate.tasks): nothing is known of them. {use}"
    if not any(task.damage_significant for task in tasks):
        return f"No benchmark shows damage; more items (evaluate.limit) would show smaller ones. {use}"
    return f"All that was significantly lost came back. {use}"
