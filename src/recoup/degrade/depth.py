"""Depth pruning: remove whole blocks, those that turn the hidden states least on calibration text.

- `block_influence` (ShortGPT, 2403.03853): BI_l = 1 − E[cos(x_l, x_{l+1})], the mean over all tokens of the cosine between what
  enters block l and what leaves it; the `num_blocks` of lowest BI go, wherever they stand.
- `angular` (2403.17887, section 3.2): d(x_l, x_{l+n}) = arccos(cos(x_l, x_{l+n})) / π at the last token of a sequence, the only
  one that depends on all of it, averaged over sequences; the n consecutive blocks l … l+n−1 of smallest d go.

Both rank once, on the whole model; neither updates a weight. Later blocks move up: their index (which a key/value cache goes
by), their entries in the config's per-layer lists and the names in the structure follow. Whole matrices go or stay, so grids and
masks are kept.

Shapes: B sequences, T padded tokens, S sequences in all, L blocks, D width.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from recoup.config import Depth
from recoup.data.calibration import calibration_rollouts
from recoup.degrade import Context
from recoup.degrade.cut import blueprint, conform, noted
from recoup.degrade.walk import boundaries
from recoup.errors import StructureError
from recoup.models.layers import blocks
from recoup.models.load import LanguageModel
from recoup.models.logits import batches
from recoup.models.sample import Rollouts
from recoup.structure.spec import Constraint, Structure

BATCH_SIZE = 2  # sequences in one pass: hidden states at all L + 1 boundaries are held


@torch.no_grad()
def apply(model: LanguageModel, structure: Structure, config: Depth, context: Context) -> Structure:
    """Remove blocks of `model` in place; returns `structure` with later blocks renamed and the change of depth noted.

    Raises:
        StructureError: no list of blocks is found, none would be left, or the config cannot express the cut.
        DataError: the calibration file is missing or empty.
    """
    chain = blocks(model.model)
    depth = len(chain)
    if config.num_blocks >= depth:
        raise StructureError(f"num_blocks {config.num_blocks} removes all {depth} blocks of {model.name}; lower it")
    rollouts = calibration_rollouts(config.calibration, model, config.calibration_tokens, context.seed)
    removed = _chosen(model, rollouts, config, context)
    kept = [index for index in range(depth) if index not in removed]
    changes = _config_changes(model.model, kept)
    plan = blueprint(model.model, changes)
    prefix = next(name for name, module in model.model.named_modules() if module is chain)
    for index in sorted(removed, reverse=True):
        del chain[index]
    conform(model.model, plan, changes)
    context.note(f"blocks {', '.join(map(str, removed))} of {depth} removed ({config.criterion.replace('_', ' ')})")
    constraints = renamed(structure.constraints, prefix, kept)
    return Structure(constraints, noted(structure, {"num_hidden_layers": (depth, len(kept))}))


# --- the maths ---------------------------------------------------------------------------------------------------------


def cosine_sum(
    before_BTD: Float[Tensor, "B T D"], after_BTD: Float[Tensor, "B T D"], attention_BT: Bool[Tensor, "B T"]
) -> float:
    """Sum over real tokens of the cosine between a block's input and output."""
    before_ND, after_ND = before_BTD[attention_BT].double(), after_BTD[attention_BT].double()
    return float(torch.cosine_similarity(before_ND, after_ND, dim=-1).sum())


def lowest(influence_L: Float[Tensor, " L"], count: int) -> list[int]:
    """Indices of the `count` smallest, ascending; of equal ones the first."""
    return sorted(torch.argsort(influence_L, stable=True)[:count].tolist())


def angular_distances(states_LSD: Float[Tensor, "L S D"], length: int) -> Float[Tensor, " runs"]:
    """Mean over sequences of arccos(cos(x_l, x_{l+length})) / π, for every l, from the states at all block boundaries."""
    states_LSD = states_LSD.double()
    cosine_RS = torch.cosine_similarity(states_LSD[:-length], states_LSD[length:], dim=-1)
    return (cosine_RS.clamp(-1, 1).arccos() / torch.pi).mean(1)


def last_tokens(states_BTD: Float[Tensor, "B T D"], attention_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The state at each sequence's last real token."""
    positions_T = torch.arange(attention_BT.shape[1], device=attention_BT.device)
    last_B = torch.where(attention_BT, positions_T, -1).max(1).values
    return states_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


# --- what is seen ------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What the boundaries have shown so far."""

    cosine_sums: list[float]  # per block
    last_states: list[Tensor] = field(default_factory=list)  # per batch: boundaries × sequences × D
    num_tokens: int = 0

    def add(self, states: Sequence[Tensor], attention_BT: Tensor) -> None:
        for block, (before, after) in enumerate(pairwise(states)):
            self.cosine_sums[block] += cosine_sum(before, after, attention_BT)
        self.last_states.append(torch.stack([last_tokens(state, attention_BT) for state in states]))
        self.num_tokens += int(attention_BT.sum())


def _chosen(model: LanguageModel, rollouts: Sequence[Rollouts], config: Depth, context: Context) -> list[int]:
    """Blocks to remove, ascending."""
    seen = _Seen([0.0] * len(blocks(model.model)))
    for done, rows in enumerate(rollouts, start=1):
        for batch in batches(rows, BATCH_SIZE):
            seen.add(boundaries(model, batch), batch.attention_BT)
        context.progress("depth", done, len(rollouts))
    if config.criterion == "block_influence":
        return lowest(1 - torch.tensor(seen.cosine_sums, dtype=torch.float64) / seen.num_tokens, config.num_blocks)
    distances = angular_distances(torch.cat(seen.last_states, dim=1), config.num_blocks)
    first = int(distances.argmin())
    return list(range(first, first + config.num_blocks))


# --- the cut -----------------------------------------------------------------------------------------------------------


def renamed(constraints: Mapping[str, Constraint], prefix: str, kept: Sequence[int]) -> dict[str, Constraint]:
    """Constraints under the names that the `kept` blocks have once the others are gone; `prefix` names the list of blocks."""
    numbers = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(kept)}
    found = {}
    for name, constraint in constraints.items():
        start = next((start for start in numbers if name.startswith(start)), None)
        if start is not None:
            found[numbers[start] + name.removeprefix(start)] = constraint
        elif not name.startswith(f"{prefix}."):
            found[name] = constraint
    return found


def _config_changes(model: PreTrainedModel, kept: Collection[int]) -> dict[str, object]:
    """The depth, and every list of the config that has an entry per block (`layer_types` and its kin)."""
    depth = len(blocks(model))
    changes: dict[str, object] = {"num_hidden_layers": len(kept)}
    for name, value in model.config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            changes[name] = [value[index] for index in kept]
    return changes
