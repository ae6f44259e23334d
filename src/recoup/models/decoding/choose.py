"""Which decoder a model gets: the lean one where it is known to fit and its logits are the model's own, else the whole one.

The comparison is made at the first use of a model in a type and on a device: two prompts of unequal lengths, one step
after each, against transformers' forward pass over the same tokens without a cache.
"""

import logging
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from recoup.models.decoding.base import Decoder, position_ids
from recoup.models.decoding.layout import Layout, read_layout
from recoup.models.decoding.lean import LeanDecoder
from recoup.models.decoding.product import can_pack
from recoup.models.decoding.whole import WholeDecoder

PROBE_LENGTHS = (11, 6)  # tokens, the last of which is the step
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 0.05  # bf16 keeps 8 bits, and an error of each of some hundred operations adds up
PACK_FROM_STEPS = 16  # packing costs about as much as 14 steps save (SmolLM2-135M, 12 to 32 rows)

logger = logging.getLogger(__name__)
_verified: WeakKeyDictionary[PreTrainedModel, dict[tuple[torch.dtype, torch.device], bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Workload:
    """What is about to be decoded: rows of a batch, steps of all batches together, tokens of the longest row."""

    num_rows: int
    num_steps: int
    longest: int


@torch.inference_mode()
def decoder_for(model: PreTrainedModel, work: Workload) -> Decoder:
    """A decoder over the model's present weights; let go of it when the work is done (a packed copy is freed with it)."""
    layout = read_layout(model)
    if layout is None or (layout.longest is not None and work.longest > layout.longest):
        return WholeDecoder(model)
    checks = _verified.setdefault(model, {})
    kind = (model.dtype, model.device)
    if kind not in checks:
        checks[kind] = _agrees(model, layout)
    if not checks[kind]:
        return WholeDecoder(model)
    packed = work.num_steps >= PACK_FROM_STEPS and can_pack(layout.head.weight)
    return LeanDecoder(model, layout, packed=packed, num_rows=work.num_rows)


def _agrees(model: PreTrainedModel, layout: Layout) -> bool:
    """Whether the lean decoder's logits are the model's, to what its type resolves."""
    difference = probe_difference(model, layout, packed=can_pack(layout.head.weight))
    agrees = difference <= TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    if not agrees:
        logger.warning(
            "%s: the lean decoder's logits are off by %.2g of their spread; sampling takes the model's own forward pass",
            type(model).__name__,
            difference,
        )
    return agrees


@torch.inference_mode()
def probe_difference(model: PreTrainedModel, layout: Layout, *, packed: bool) -> float:
    """Root mean square difference of lean and own logits, as a share of the own logits' standard deviation."""
    width = max(PROBE_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(layout.head.out_features, (len(PROBE_LENGTHS), width), generator=generator)
    tokens_BT = tokens_BT.to(model.device)
    attention_BT = torch.stack([torch.arange(width) >= width - length for length in PROBE_LENGTHS]).to(model.device)
    lean = LeanDecoder(model, layout, packed=packed, num_rows=len(PROBE_LENGTHS))
    mine = [lean.prefill(tokens_BT[:, :-1], attention_BT[:, :-1], 1), lean.step(tokens_BT[:, -1])]
    own_BTV: Tensor = (
        model(tokens_BT, attention_mask=attention_BT.long(), position_ids=position_ids(attention_BT), use_cache=False)
        .logits[:, -2:]
        .float()
    )
    difference = torch.stack(mine, dim=1).float() - own_BTV
    return float(difference.square().mean().sqrt() / own_BTV.std())
