"""From the best checkpoint of each capability to the terms of a repair: the dual objective of arXiv 2604.15794, section 3.

A benchmark stands for general ability and has no prompts to train on; a group of prompts is a task. So

- benchmarks that were lost give a term on self-written prompts for each checkpoint that was best at one of them;
- where benchmarks were scored and none was lost, general ability is anchored: the same prompts, taught by `start`, the student
  as it is;
- a group that was lost gives a term on its prompts, taught by the checkpoint that was best at it;
- a group that was not is anchored on its prompts by `start`: what the student can do, it shall keep;
- where nothing at all was lost there is nothing to repair, and no term.

A lost capability counts in proportion to the share lost (`choose.lost_share`); benchmarks together count as their mean, so that
many of them do not drown the tasks. Those weights have the mean 1, and an anchor weighs 1: it costs nothing until the student
moves. Weights are relative: the loss divides by their sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recoup.config import Recover
from recoup.config_file import parse
from recoup.history.choose import Choice
from recoup.history.score import Capability
from recoup.results import ChosenTeacher

ANCHOR = "start"  # the teacher that is the student before the repair
ANCHOR_WEIGHT = 1.0
DIGITS = 3  # decimals of a weight
LEAST_WEIGHT = 10.0**-DIGITS  # a term of weight 0 is refused


@dataclass(frozen=True)
class _Draft:
    """A term before its weight is scaled; without a share it is an anchor."""

    fields: Mapping[str, Any]
    capabilities: tuple[str, ...]
    share: float | None


def assign(
    choices: Sequence[Choice], capabilities: Sequence[Capability], prompts: str | None
) -> tuple[tuple[ChosenTeacher, ...], tuple[dict[str, Any], ...]]:
    """Who teaches what with which weight, and the same as `recover.terms`.

    Args:
        choices: one for each capability.
        capabilities: in the same order.
        prompts: the prompt file, if there is one.

    Returns:
        The chosen teachers, in the order of the capabilities, each with the weight of the term that it is in, 0 where
        there is none; and the terms, which `config.Recover` accepts.
    """
    pairs = list(zip(choices, capabilities, strict=True))
    drafts = [
        *_general([choice for choice, capability in pairs if capability.is_task]),
        *(_task(choice, capability, str(prompts)) for choice, capability in pairs if not capability.is_task),
    ]
    weights = _weights(drafts)
    terms = tuple({**draft.fields, "weight": weight} for draft, weight in zip(drafts, weights, strict=True) if weight)
    if terms:
        parse(Recover, {"terms": list(terms)}, "the terms of this history")
    of_capability = {name: weight for draft, weight in zip(drafts, weights, strict=True) for name in draft.capabilities}
    return tuple(_chosen(choice, of_capability.get(choice.capability, 0.0)) for choice in choices), terms


def _general(choices: Sequence[Choice]) -> list[_Draft]:
    """Terms on prompts that the teacher writes itself, one for each teacher, or the anchor."""
    lost = [choice for choice in choices if choice.significant]
    if not lost:
        names = tuple(choice.capability for choice in choices)
        return [_Draft({"prompts": "self", "teacher": ANCHOR}, names, None)] if choices else []
    drafts = []
    for teacher in dict.fromkeys(choice.checkpoint for choice in lost):
        own = [choice for choice in lost if choice.checkpoint == teacher]
        share = sum(choice.lost_share for choice in own) / len(lost)
        names = tuple(choice.capability for choice in own)
        drafts.append(_Draft({"prompts": "self", "teacher": teacher}, names, share))
    return drafts


def _task(choice: Choice, capability: Capability, prompts: str) -> _Draft:
    group = {} if capability.group is None else {"group": capability.group}
    teacher = choice.checkpoint if choice.significant else ANCHOR
    share = choice.lost_share if choice.significant else None
    return _Draft({"prompts": prompts, **group, "teacher": teacher}, (choice.capability,), share)


def _weights(drafts: Sequence[_Draft]) -> list[float]:
    """In proportion to the shares, with mean 1; 1 for an anchor; all 0 where there is nothing but anchors."""
    shares = [draft.share for draft in drafts if draft.share is not None]
    if not shares:
        return [0.0] * len(drafts)
    mean = sum(shares) / len(shares)
    scaled = (ANCHOR_WEIGHT if draft.share is None else draft.share / mean for draft in drafts)
    return [max(LEAST_WEIGHT, round(weight, DIGITS)) for weight in scaled]


def _chosen(choice: Choice, weight: float) -> ChosenTeacher:
    return ChosenTeacher(
        capability=choice.capability,
        checkpoint=choice.checkpoint,
        gain=choice.gain,
        significant=choice.significant,
        weight=weight,
    )
