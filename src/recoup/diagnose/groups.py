"""Damage by group of prompts (`Prompt.group`): what was lost of one capability is hidden in a mean over all."""

from collections.abc import Callable, Sequence

from recoup.data.prompts import Prompt
from recoup.evaluate.fidelity import TokenValues
from recoup.results import GroupDamage

UNGROUPED = "without a group"

MeanCka = Callable[[Sequence[int]], float | None]  # of the tokens of these prompts, over the blocks


def group_damage(
    prompts: Sequence[Prompt], values: TokenValues, mean_cka: MeanCka, *, num_bootstrap: int, seed: int
) -> tuple[GroupDamage, ...]:
    """Fidelity and mean CKA of each group of prompts, by the groups' names; nothing where all prompts are one group.

    Args:
        prompts: what was asked.
        values: the student against the reference on the completions of these prompts.
        mean_cka: CKA of the prompts with these numbers; null where they have too few tokens.
        num_bootstrap: resamples of a group's prompts.
        seed: decides them.
    """
    assert len(prompts) == values.num_prompts, "one completion a prompt"
    members = _rows_by_group([UNGROUPED if prompt.group is None else prompt.group for prompt in prompts])
    if len(members) == 1:
        return ()
    return tuple(
        GroupDamage(
            group=name,
            tokens=values.of(rows).damage(num_bootstrap=num_bootstrap, seed=seed),
            mean_cka=mean_cka(rows),
        )
        for name, rows in members.items()
    )


def _rows_by_group(names: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of each group's prompts, ascending; the groups by name, and last the prompts without one."""
    order = sorted(set(names), key=lambda name: (name == UNGROUPED, name))
    return {name: [row for row, other in enumerate(names) if other == name] for name in order}
