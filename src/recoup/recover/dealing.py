"""Rollouts that wait in a checkpoint: kept as one batch, so that any number of processes can go on with them.

Process r of P holds the rows r, r + P, … of each step and term (`Processes.mine`), under `step.term.field` as
`RolloutBuffer.state` names them.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from recoup.models.logits import rows_of
from recoup.models.sample import Rollouts, pack
from recoup.recover.buffer import named_tensors, parts_of
from recoup.training.processes import Processes


def together(shares: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """The buffer of one process alone, from those of all, in order of rank; `pad` fills places without a token."""
    if len(shares) == 1:
        return dict(shares[0])
    parts = [parts_of(share) for share in shares]
    places = sorted({place for part in parts for place in part})
    return named_tensors({place: _merged([part[place] for part in parts if place in part], pad) for place in places})


def dealt(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """This process's share of the buffer of one process alone."""
    if processes.number == 1:
        return dict(tensors)
    shares = {}
    for place, rollouts in parts_of(tensors).items():
        if processes.rank < len(rollouts.tokens_BT):
            shares[place] = rows_of(rollouts, slice(processes.rank, None, processes.number))
    return named_tensors(shares)


def _merged(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """Row 0 of every part, then row 1 of every part, …; the first parts may have one row more."""
    rows = [(index, rank) for rank, part in enumerate(parts) for index in range(len(part.tokens_BT))]
    order = [(parts[rank], index) for index, rank in sorted(rows)]
    prompts = [part.tokens_BT[i][part.attention_BT[i] & ~part.completion_BT[i]].tolist() for part, i in order]
    completions = [part.tokens_BT[i][part.completion_BT[i]].tolist() for part, i in order]
    logps = [[] if part.logp_BT is None else part.logp_BT[i][part.completion_BT[i]].tolist() for part, i in order]
    return pack(prompts, completions, pad, logps=None if parts[0].logp_BT is None else logps)
