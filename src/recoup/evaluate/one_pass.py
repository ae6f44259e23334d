"""Contexts that go with each of their continuations in one pass: those with one continuation, and those that are short.

Shapes: B lines in a batch, T padded tokens, N positions whose logits are read, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.evaluate.passes import LOGITS_TOKENS, head_at, padded, runs
from recoup.models.load import LanguageModel
from recoup.models.sample import pad_id

READ_AGAIN = 0.5  # of a context's and its answers' tokens, the most that are read again rather than kept in a cache


@dataclass(frozen=True)
class Line:
    """A context and a continuation without its last token, for one pass."""

    tokens: tuple[int, ...]
    num_context: int
    pairs: tuple[int, ...]  # the pairs that are scored on it

    @property
    def num_targets(self) -> int:
        """Tokens of the continuation."""
        return len(self.tokens) - self.num_context + 1


def lines(context: tuple[int, ...], continuations: Sequence[tuple[int, ...]], pairs: Sequence[int]) -> list[Line]:
    """The context with each of its continuations, equal inputs merged."""
    merged: dict[tuple[int, ...], list[int]] = {}
    for index in pairs:
        merged.setdefault(continuations[index][:-1], []).append(index)
    return [Line(context + rest, len(context), tuple(indices)) for rest, indices in merged.items()]


def read_again(lines: Sequence[Line]) -> bool:
    """Whether a context goes with each of its continuations, rather than into a cache once."""
    again = (len(lines) - 1) * lines[0].num_context
    return again <= READ_AGAIN * sum(len(line.tokens) for line in lines)


def line_batches(lines: Sequence[Line], batch_tokens: int) -> Iterator[list[Line]]:
    """The longest first."""
    ordered = sorted(lines, key=lambda line: len(line.tokens), reverse=True)
    most = max((line.num_targets for line in lines), default=1)
    widths = [len(line.tokens) for line in ordered]
    for run in runs(widths, lambda widest: min(batch_tokens // widest, LOGITS_TOKENS // most)):
        yield ordered[run]


@torch.inference_mode()
def at_once(model: LanguageModel, lines: Sequence[Line]) -> Float[Tensor, "N V"]:
    """The logits that predict the continuations, line by line. Pads stand on the right, where no token sees them."""
    tokens_BT, real_BT = padded([line.tokens for line in lines], pad_id(model), left=False)
    firsts_B1 = torch.tensor([[line.num_context - 1] for line in lines])
    wanted_BT = real_BT & (torch.arange(real_BT.shape[1]) >= firsts_B1)
    with head_at(model, wanted_BT.to(model.device)):
        output = model.model(tokens_BT.to(model.device), use_cache=False)
    logits_NV: Tensor = output.logits[0]
    return logits_NV
