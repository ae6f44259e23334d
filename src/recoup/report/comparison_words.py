"""Sentences of a page of several runs: what is compared, and whether it cost the same."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from recoup.report.shared import Compared, Shared
from recoup.report.words import counted, duration
from recoup.results import RecoverResult

EQUAL = 1.05  # budgets that differ by less are called equal: a run ends with the step that passes its budget


def title(runs: Sequence[Compared], shared: Shared) -> str:
    """What stands beside what."""
    if not shared.runs:
        return f"{len(runs)} runs, none of them evaluated"
    of = f"{counted(len(shared.tasks), 'benchmark')} in common"
    return (
        f"{len(runs)} runs, {of}"
        if len(shared.runs) == len(runs)
        else f"{len(runs)} runs, {len(shared.runs)} evaluated, {of}"
    )


def where(one: Compared) -> str:
    """What was done to the model of a run, and how it was repaired."""
    injuries = ", then ".join(f"{injury.method} ({injury.summary})" for injury in one.run.injuries)
    repair = f"repaired by {one.run.recovery.method}" if one.run.recovery else "not repaired"
    reference = f"; reference {one.run.evaluation.reference}" if one.run.evaluation else ""
    return f"{f'damaged by {injuries}' if injuries else 'damaged before the run'}; {repair}{reference}"


def budget(runs: Sequence[Compared]) -> list[str]:
    """Whether those that were trained had equal tokens and equal time."""
    trained = {one.key: one.run.recovery for one in runs if one.run.recovery and one.run.recovery.steps}
    free = [one.key for one in runs if one.run.recovery and not one.run.recovery.steps]
    sentences = [f"Nothing was trained in {', '.join(free)}."] if free else []
    if len(trained) > 1:
        sentences += [_tokens(trained), _time(trained), _machines(runs)]
    return [sentence for sentence in sentences if sentence]


def _tokens(trained: Mapping[str, RecoverResult]) -> str:
    spent = {key: recovery.num_tokens for key, recovery in trained.items()}
    ends = _ends(spent, "{:,}".format)
    if equal(spent.values()):
        return f"Equal tokens: all trained on {ends} completion tokens."
    return f"Not equal tokens: {ends} completion tokens, so compare scores with that in mind."


def _time(trained: Mapping[str, RecoverResult]) -> str:
    spent = {key: recovery.seconds for key, recovery in trained.items()}
    return f"{'Equal' if equal(spent.values()) else 'Not equal'} time: {_ends(spent, duration)}."


def equal(spent: Collection[float]) -> bool:
    """Whether budgets are near enough to be called equal."""
    return max(spent) <= EQUAL * min(spent)


def _ends(spent: Mapping[str, Any], show: Callable[[Any], str]) -> str:
    """Least and most, each with its run."""
    least, most = min(spent, key=spent.__getitem__), max(spent, key=spent.__getitem__)
    if show(spent[least]) == show(spent[most]):
        return show(spent[least])
    return f"{show(spent[least])} ({least}) to {show(spent[most])} ({most})"


def _machines(runs: Sequence[Compared]) -> str:
    devices = [one.run.provenance.get("device") for one in runs]
    return (
        ""
        if all(device == devices[0] for device in devices)
        else "The runs were made on different machines, so their times do not compare."
    )
