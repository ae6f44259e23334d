"""Log-likelihoods of continuations, fast: a context that several continuations share is read once.

Multiple-choice benchmarks ask for log p(answer | context) of a few answers per context. The contexts go through the
backbone without the head, padded on the left, into a KV cache; then the answers, padded on the right, go through the whole
model over rows of that cache, its head narrowed to real tokens. So the head (a large part of a small model) sees answers
alone, and whatever an architecture does around it (soft caps, scales) is its own code. Equal inputs, as before the letters
of MMLU, are run once. The log-softmax is float32 whatever the model's type.

Shapes: C contexts, B answers (rows) in a batch, P padded context tokens, T padded answer tokens, N real
answer tokens, M scored tokens, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from recoup.errors import DataError
from recoup.evaluate.items import Report, silent
from recoup.models.load import LanguageModel
from recoup.models.logits import output_head
from recoup.models.sample import pad_id, position_ids

LOGITS_TOKENS = 2048  # answer tokens whose logits are held at once: 0.6 GB in bf16 for a vocabulary of 152k
SOFTMAX_TOKENS = 256  # of those, how many in float32 at once
SAME_WIDTH = 0.75  # a batch ends where a quarter would be pads,
SMALLEST_RUN = 8  # unless it were this small

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation: token ids


@dataclass(frozen=True)
class _Row:
    """One input of the second pass: the last context token and the continuation without its own last token."""

    context: int  # its place in the cache
    tokens: tuple[int, ...]
    pairs: tuple[int, ...]  # the pairs that are scored on it


@dataclass(frozen=True)
class _Prefix:
    """Contexts without their last token, as a cache."""

    cache: DynamicCache
    attention_CP: Bool[Tensor, "C P"]


def continuation_logp(
    model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int, report: Report = silent
) -> list[tuple[float, bool]]:
    """Find log p(continuation | context) in nats, and whether greedy decoding would write the continuation.

    Args:
        model: any causal language model.
        pairs: contexts of at least one token, each with a continuation.
        batch_tokens: tokens per forward pass, pads and cached context included.
        report: told how many pairs are done.

    Raises:
        DataError: a continuation is longer than the model's context.
    """
    fitted = [_fit(pair, context_length(model)) for pair in pairs]
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)  # what an empty continuation gets
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(fitted):
        if continuation:
            by_context.setdefault(context, []).append(index)
    done = len(pairs) - sum(map(len, by_context.values()))
    ordered = sorted(by_context, key=len, reverse=True)
    for run in _runs([len(context) for context in ordered], lambda longest: batch_tokens // longest):
        contexts = ordered[run]
        prefix = _read(model, [context[:-1] for context in contexts])
        for rows in _row_batches(contexts, by_context, fitted, batch_tokens):
            for index, answer in _score(model, prefix, rows, fitted):
                answers[index] = answer
            done += sum(len(row.pairs) for row in rows)
            report(done, len(pairs))
    return answers


def context_length(model: LanguageModel) -> int:
    """Longest input in tokens that the model was made for (as lm-eval finds it)."""
    config = model.model.config.get_text_config()
    for field in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (length := getattr(config, field, None)) is not None:
            return int(length)
    return int(min(model.tokenizer.model_max_length, 2048))


def _fit(pair: Pair, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut the context from the left until all but the last token fits, as lm-eval does."""
    context, continuation = tuple(pair[0]), tuple(pair[1])
    assert context, "an empty context"
    if len(continuation) > length:
        raise DataError(
            f"a continuation has {len(continuation)} tokens, the model's context {length}; leave this task out"
        )
    return context[-(length + 1 - len(continuation)) :], continuation


def _runs(widths: Sequence[int], room: Callable[[int], int]) -> Iterator[slice]:
    """Runs of things sorted by width, widest first: at most `room(widest)` things each, of much the same width."""
    start = 0
    while start < len(widths):
        most = min(len(widths), start + max(1, room(widths[start])))
        stop = min(most, start + SMALLEST_RUN)
        while stop < most and widths[stop] >= SAME_WIDTH * widths[start]:
            stop += 1
        yield slice(start, stop)
        start = stop


def _row_batches(
    contexts: Sequence[tuple[int, ...]],
    by_context: dict[tuple[int, ...], list[int]],
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    batch_tokens: int,
) -> Iterator[list[_Row]]:
    """The inputs over these contexts, equal ones merged, the longest first."""
    merged: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for place, context in enumerate(contexts):
        for index in by_context[context]:
            merged.setdefault((place, (context[-1], *pairs[index][1][:-1])), []).append(index)
    rows = [_Row(place, tokens, tuple(indices)) for (place, tokens), indices in merged.items()]
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    cached = len(contexts[0]) - 1
    widths = [len(row.tokens) for row in rows]
    for run in _runs(widths, lambda widest: min(batch_tokens // (cached + widest), LOGITS_TOKENS // widest)):
        yield rows[run]


@torch.inference_mode()
def _read(model: LanguageModel, contexts: Sequence[tuple[int, ...]]) -> _Prefix:
    """Fill a cache with contexts, padded on the left so that what follows them is adjacent to them."""
    tokens_CP, attention_CP = _padded(contexts, pad_id(model), left=True)
    cache = DynamicCache(config=model.model.config)
    attention_CP = attention_CP.to(model.device)
    if tokens_CP.shape[1]:
        model.model.base_model(
            tokens_CP.to(model.device),
            attention_mask=attention_CP.long(),
            position_ids=position_ids(attention_CP),
            past_key_values=cache,
            use_cache=True,
        )
    return _Prefix(cache, attention_CP)


@torch.inference_mode()
def _score(
    model: LanguageModel,
    prefix: _Prefix,
    rows: Sequence[_Row],
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> Iterator[tuple[int, tuple[float, bool]]]:
    """Score the pairs of `rows`: (pair, (log p, greedy))."""
    tokens_BT, real_BT = (x.to(model.device) for x in _padded([row.tokens for row in rows], pad_id(model), left=False))
    places_B = torch.tensor([row.context for row in rows], device=model.device)
    attention = torch.cat([prefix.attention_CP[places_B], real_BT], dim=1)
    with _head_at(model, real_BT):
        logits_NV = model.model(
            tokens_BT,
            attention_mask=attention.long(),
            position_ids=position_ids(attention)[:, -tokens_BT.shape[1] :],
            past_key_values=_rows_of(prefix.cache, places_B),
            use_cache=True,
        ).logits[0]
    starts = [0, *accumulate(len(row.tokens) for row in rows)]
    scored = [(start, index) for start, row in zip(starts, rows, strict=False) for index in row.pairs]
    lengths = [len(pairs[index][1]) for _, index in scored]
    positions_M = torch.cat([start + torch.arange(length) for (start, _), length in zip(scored, lengths, strict=True)])
    targets_M = torch.tensor([token for _, index in scored for token in pairs[index][1]])
    logp_M, greedy_M = _token_logp(logits_NV, positions_M.to(model.device), targets_M.to(model.device))
    for (_, index), logp, greedy in zip(scored, logp_M.split(lengths), greedy_M.split(lengths), strict=True):
        yield index, (float(logp.sum()), bool(greedy.all()))


@contextmanager
def _head_at(model: LanguageModel, real_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
    """While open, the model's head sees the real tokens only, as one row: pads cost no logits."""

    def narrow(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][real_BT][None],)

    hook = output_head(model.model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        hook.remove()


def _token_logp(
    logits_NV: Float[Tensor, "N V"], positions_M: Int[Tensor, " M"], targets_M: Int[Tensor, " M"]
) -> tuple[Float[Tensor, " M"], Bool[Tensor, " M"]]:
    """Find log p of each target at its position, and whether none is likelier; on the CPU, in float32."""
    logp, greedy = [], []
    for positions, targets in zip(positions_M.split(SOFTMAX_TOKENS), targets_M.split(SOFTMAX_TOKENS), strict=True):
        chosen = logits_NV[positions].float()
        logp.append(-nn.functional.cross_entropy(chosen, targets, reduction="none"))
        greedy.append(chosen.gather(1, targets[:, None])[:, 0] >= chosen.amax(-1))
    return torch.cat(logp).cpu(), torch.cat(greedy).cpu()


def _rows_of(cache: DynamicCache, places_B: Int[Tensor, " B"]) -> DynamicCache:
    """A cache of those rows; the original is left as it was (selecting and growing make new tensors)."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(places_B)
    return chosen


def _padded(
    sequences: Sequence[Sequence[int]], pad: int, *, left: bool
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token ids and a mask that is true at real tokens."""
    width = max(map(len, sequences))
    pads = [[pad] * (width - len(sequence)) for sequence in sequences]
    tokens = [[*p, *s] if left else [*s, *p] for s, p in zip(sequences, pads, strict=True)]
    lengths_B1 = torch.tensor([[len(sequence)] for sequence in sequences])
    places_1T = torch.arange(width)[None]
    real = places_1T >= width - lengths_B1 if left else places_1T < lengths_B1
    return torch.tensor(tokens, dtype=torch.long).reshape(len(sequences), width), real
