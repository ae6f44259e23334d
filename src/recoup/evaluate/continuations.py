"""Log-likelihoods of continuations, fast: what several continuations share is read once.

Multiple-choice benchmarks ask for log p(answer | context) of a few answers per context. The contexts, padded on the left, go
into a KV cache (what all of them begin with, such as worked examples, as one row); their last logits score the first token of
every answer. What is left of the answers, padded on the right, goes over rows of that cache, so answers of one token, such as
the letters of MMLU, need no second pass. A context with one answer (texts, last words), or so short that it is sooner read
again for each than kept, goes with its answer in one pass instead, padded on the right: no token sees a pad then, so attention
is plainly causal, which kernels do in half the time that they take under a mask. Only hidden states whose logits are read enter
the head (a large part of a small model), and whatever an architecture does around it (soft caps, scales) is its own code. Equal
inputs are run once. The log-softmax is float32 whatever the model's type, on as many logits at a time as stay in the
processor's cache.

Shapes: C contexts, B answers (rows) in a batch, P padded context tokens, T padded tokens of a pass, S all columns that it
attends to, N positions whose logits are read, M scored tokens, V vocabulary.
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

from recoup.divergence.chunks import blocks
from recoup.errors import DataError
from recoup.evaluate.items import Report, silent
from recoup.models.load import LanguageModel
from recoup.models.logits import output_head
from recoup.models.sample import pad_id, position_ids

LOGITS_TOKENS = 2048  # positions whose logits are held at once: 0.6 GB in bf16 for a vocabulary of 152k
SAME_WIDTH = 0.75  # a batch ends where a quarter would be pads,
SMALLEST_RUN = 8  # unless it were this small
LEAST_SHARED = 32  # tokens that all contexts must begin with before they are read once for all
READ_AGAIN = 0.5  # of a context's and its answers' tokens, the most that are read again rather than kept in a cache

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation: token ids
Answer = tuple[float, bool]  # log p in nats, whether greedy decoding would write it


@dataclass(frozen=True)
class _Row:
    """One input of the second pass: a continuation without its last token."""

    context: int  # its place in the cache
    tokens: tuple[int, ...]
    pairs: tuple[int, ...]  # the pairs that are scored on it


@dataclass(frozen=True)
class _Line:
    """A context and a continuation without its last token, for one pass."""

    tokens: tuple[int, ...]
    num_context: int
    pairs: tuple[int, ...]  # the pairs that are scored on it

    @property
    def num_targets(self) -> int:
        return len(self.tokens) - self.num_context + 1


@dataclass(frozen=True)
class _Prefix:
    """Contexts as a cache."""

    cache: DynamicCache
    attention_CP: Bool[Tensor, "C P"]


@dataclass(frozen=True)
class _Wanted:
    """What to read off a pass's logits: `targets` of a pair, at as many positions from `start` on."""

    pair: int
    start: int
    targets: tuple[int, ...]


def continuation_logp(
    model: LanguageModel, pairs: Sequence[Pair], batch_tokens: int, report: Report = silent
) -> list[Answer]:
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
    continuations = [continuation for _, continuation in fitted]
    answers: list[Answer] = [(0.0, True)] * len(pairs)  # what an empty continuation gets
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(fitted):
        if continuation:
            by_context.setdefault(context, []).append(index)
    done = len(pairs) - sum(map(len, by_context.values()))
    ordered = sorted(by_context, key=len, reverse=True)
    opening = _opening(model, ordered)
    opened = opening.attention_CP.shape[1]
    if not opened:
        lines = [_lines(context, continuations, by_context[context]) for context in ordered]
        at_once = [line for of_context in lines if _read_again(of_context) for line in of_context]
        for batch in _line_batches(at_once, batch_tokens):
            starts = accumulate((line.num_targets for line in batch), initial=0)
            wanted = [
                _Wanted(i, at, continuations[i]) for at, line in zip(starts, batch, strict=False) for i in line.pairs
            ]
            _score(answers, _at_once(model, batch), wanted)
            done += len(wanted)
            report(done, len(pairs))
        ordered = [context for context, of_context in zip(ordered, lines, strict=True) if not _read_again(of_context)]
    widths = [len(context) - opened for context in ordered]
    for run in _runs(widths, lambda widest: min(batch_tokens // (opened + widest), LOGITS_TOKENS)):
        members = [by_context[context] for context in ordered[run]]
        firsts = [(i, place) for place, indices in enumerate(members) for i in indices]
        prefix, logits_CV = _read(model, opening, ordered[run])
        _score(answers, logits_CV, [_Wanted(i, place, continuations[i][:1]) for i, place in firsts])
        del logits_CV  # before those of the second pass are made
        done += sum(len(continuations[i]) == 1 for i, _ in firsts)
        report(done, len(pairs))
        for rows in _row_batches(members, continuations, prefix.attention_CP.shape[1], batch_tokens):
            starts = accumulate((len(row.tokens) for row in rows), initial=0)
            rest = [
                _Wanted(i, at, continuations[i][1:]) for at, row in zip(starts, rows, strict=False) for i in row.pairs
            ]
            _score(answers, _continue(model, prefix, rows), rest)
            done += len(rest)
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


def _lines(context: tuple[int, ...], continuations: Sequence[tuple[int, ...]], pairs: Sequence[int]) -> list[_Line]:
    """The context with each of its continuations, equal inputs merged."""
    merged: dict[tuple[int, ...], list[int]] = {}
    for index in pairs:
        merged.setdefault(continuations[index][:-1], []).append(index)
    return [_Line(context + rest, len(context), tuple(indices)) for rest, indices in merged.items()]


def _read_again(lines: Sequence[_Line]) -> bool:
    """Whether a context goes with each of its continuations, rather than into a cache once."""
    again = (len(lines) - 1) * lines[0].num_context
    return again <= READ_AGAIN * sum(len(line.tokens) for line in lines)


def _line_batches(lines: Sequence[_Line], batch_tokens: int) -> Iterator[list[_Line]]:
    """The longest first."""
    ordered = sorted(lines, key=lambda line: len(line.tokens), reverse=True)
    most = max((line.num_targets for line in lines), default=1)
    widths = [len(line.tokens) for line in ordered]
    for run in _runs(widths, lambda widest: min(batch_tokens // widest, LOGITS_TOKENS // most)):
        yield ordered[run]


def _row_batches(
    members: Sequence[Sequence[int]], continuations: Sequence[tuple[int, ...]], cached: int, batch_tokens: int
) -> Iterator[list[_Row]]:
    """What is left of the continuations of each context, equal inputs merged, the longest first; `cached` columns each."""
    merged: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for place, indices in enumerate(members):
        for index in indices:
            if len(continuations[index]) > 1:
                merged.setdefault((place, continuations[index][:-1]), []).append(index)
    rows = [_Row(place, tokens, tuple(indices)) for (place, tokens), indices in merged.items()]
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    widths = [len(row.tokens) for row in rows]
    for run in _runs(widths, lambda widest: min(batch_tokens // (cached + widest), LOGITS_TOKENS // widest)):
        yield rows[run]


@torch.inference_mode()
def _opening(model: LanguageModel, contexts: Sequence[tuple[int, ...]]) -> _Prefix:
    """What all contexts begin with, such as the examples before each question, as a cache of one row; often nothing.

    Pads come after it, and where a layer has a sliding window, which counts pads, they would push it out: nothing then.
    """
    cache = DynamicCache(config=model.model.config)
    length = 0 if any(cache.is_sliding) or not contexts[1:] else _num_shared(contexts)
    shared_1P = torch.tensor([contexts[0][:length] if contexts else ()], dtype=torch.long, device=model.device)
    attention_1P = torch.ones_like(shared_1P, dtype=torch.bool)
    if length:
        _logits(model, shared_1P, attention_1P, cache, torch.zeros_like(attention_1P))
    return _Prefix(cache, attention_1P)


def _num_shared(contexts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all contexts begin with, less than the shortest has; 0 where they are too few for a pass of their own."""
    least, most = min(contexts), max(contexts)  # what these share, all that lie between them share
    equal = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
    length = min(equal, min(map(len, contexts)) - 1)
    return length if length >= LEAST_SHARED else 0


@torch.inference_mode()
def _read(
    model: LanguageModel, opening: _Prefix, contexts: Sequence[tuple[int, ...]]
) -> tuple[_Prefix, Float[Tensor, "C V"]]:
    """A cache of contexts, padded on the left of what follows the opening; and the logits after them."""
    num_read = opening.attention_CP.shape[1]
    rest = [context[num_read:] for context in contexts]
    tokens_CT, real_CT = (x.to(model.device) for x in _padded(rest, pad_id(model), left=True))
    attention_CP = torch.cat([opening.attention_CP.expand(len(rest), -1), real_CT], dim=1)
    cache = _rows_of(opening.cache, torch.zeros(len(rest), dtype=torch.long, device=model.device))
    last_CT = torch.zeros_like(real_CT)
    last_CT[:, -1] = True
    return _Prefix(cache, attention_CP), _logits(model, tokens_CT, attention_CP, cache, last_CT)


@torch.inference_mode()
def _at_once(model: LanguageModel, lines: Sequence[_Line]) -> Float[Tensor, "N V"]:
    """The logits that predict the continuations, line by line. Pads stand on the right, where no token sees them."""
    tokens_BT, real_BT = _padded([line.tokens for line in lines], pad_id(model), left=False)
    firsts_B1 = torch.tensor([[line.num_context - 1] for line in lines])
    wanted_BT = real_BT & (torch.arange(real_BT.shape[1]) >= firsts_B1)
    with _head_at(model, wanted_BT.to(model.device)):
        output = model.model(tokens_BT.to(model.device), use_cache=False)
    logits_NV: Tensor = output.logits[0]
    return logits_NV


@torch.inference_mode()
def _continue(model: LanguageModel, prefix: _Prefix, rows: Sequence[_Row]) -> Float[Tensor, "N V"]:
    """The logits after every token of `rows`, row by row."""
    tokens_BT, real_BT = (x.to(model.device) for x in _padded([row.tokens for row in rows], pad_id(model), left=False))
    places_B = torch.tensor([row.context for row in rows], device=model.device)
    attention_BS = torch.cat([prefix.attention_CP[places_B], real_BT], dim=1)
    return _logits(model, tokens_BT, attention_BS, _rows_of(prefix.cache, places_B), real_BT)


def _logits(
    model: LanguageModel,
    tokens_BT: Int[Tensor, "B T"],
    attention_BS: Bool[Tensor, "B S"],
    cache: DynamicCache,
    wanted_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, "N V"]:
    """The logits at `wanted_BT`; the cache grows by the tokens, which are the last columns of `attention_BS`."""
    with _head_at(model, wanted_BT):
        output = model.model(
            tokens_BT,
            attention_mask=attention_BS.long(),
            position_ids=position_ids(attention_BS)[:, -tokens_BT.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
    logits_NV: Tensor = output.logits[0]
    return logits_NV


@contextmanager
def _head_at(model: LanguageModel, wanted_BT: Bool[Tensor, "B T"]) -> Iterator[None]:
    """While open, the model's head sees the wanted positions only, as one row: no others cost logits."""

    def narrow(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][wanted_BT][None],)

    hook = output_head(model.model).register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        hook.remove()


def _score(answers: list[Answer], logits_NV: Float[Tensor, "N V"], wanted: Sequence[_Wanted]) -> None:
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
    return torch.tensor(tokens, dtype=torch.long), real
