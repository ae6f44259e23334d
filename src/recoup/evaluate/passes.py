"""What forward passes over continuations have in common: batches of like widths, a head that runs where it is read, scores.

Shapes: B rows in a batch, T padded tokens of a pass, N positions whose logits are read, M scored tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recoup.divergence.chunks import blocks
from recoup.models.load import LanguageModel
from recoup.models.logits import output_head

LOGITS_TOKENS = 2048  # positions whose logits are held at once: 0.6 GB in bf16 for a vocabulary of 152k
SAME_WIDTH = 0.75  # a batch ends where a quarter would be pads,
SMALLEST_RUN = 8  # unless it were this small

Answer = tuple[float, bool]  # log p in nats, whether greedy decoding would write it


@dataclass(frozen=True)
class Wanted:
    """What to read off a pass's logits: `targets` of a pair, at as many positions from `start` on."""

    pair: int
    start: int
    targets: tuple[int, ...]


def runs(widths: Sequence[int], room: Callable[[int], int]) -> Iterator[slice]:
    """Runs of things sorted by width, widest first: at most `room(widest)` things each, of much the same width."""
    start = 0
    while start < len(widths):
        most = min(len(widths), start + max(1, room(widths[start])))
        stop = min(most, start + SMALLEST_RUN)
        while stop < most and widths[stop] >= SAME_WIDTH * widths[start]:
            stop += 1
        yield slice(start, stop)
        start = stop


@contextmanager
def head_at(model: LanguageModel, wanted_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
    """While open, the model's head sees the wanted positions only, as one row: no others cost logits."""

    def narrow(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][wanted_BT][None],)

    hook = output_head(model.model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        hook.remove()


def score(answers: list[Answer], logits_NV: Float[Tensor, "N V"], wanted: Sequence[Wanted]) -> None:
    """Add what these logits say to the answers."""
    lengths = [len(one.targets) for one in wanted]
    positions_M = torch.cat([torch.arange(one.start, one.start + len(one.targets)) for one in wanted])
    targets_M = torch.tensor([target for one in wanted for target in one.targets])
    logp_M, greedy_M = _token_logp(logits_NV, positions_M.to(logits_NV.device), targets_M.to(logits_NV.device))
    for one, logp, greedy in zip(wanted, logp_M.split(lengths), greedy_M.split(lengths), strict=True):
        before, still = answers[one.pair]
        answers[one.pair] = before + float(logp.sum()), still and bool(greedy.all())


def _token_logp(
    logits_NV: Float[Tensor, "N V"], positions_M: Int[Tensor, " M"], targets_M: Int[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Find log p of each target at its position, and whether none is likelier; on the CPU, in float32."""
    logp, greedy = [], []
    for block in blocks(len(targets_M), logits_NV.shape[1], logits_NV.device):
        chosen, targets = logits_NV[positions_M[block]].float(), targets_M[block]
        logp.append(-nn.functional.cross_entropy(chosen, targets, reduction="none"))
        greedy.append(chosen.gather(1, targets[:, None])[:, 0] >= chosen.amax(-1))
    return torch.cat(logp).cpu(), torch.cat(greedy).cpu()


def padded(
    sequences: Sequence[Sequence[int]], pad: int, *, left: bool
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token ids and a mask that is true at real tokens."""
    width = max(map(len, sequences))
    pads = [[pad] * (width - len(sequence)) for sequence in sequences]
    tokens = [[*p, *s] if left else [*s, *p] for s, p in zip(sequences, pads, strict=True)]
    lengths_B1 = torch.tensor([[len(sequence)] for sequence in sequences])
    places_1T = torch.arange(width)[None]
    real = places_1T >= width - lengths_B1 if left else places_1T < lengths_B1
    return torch.tensor(tokens, dtype=torch.long), real
