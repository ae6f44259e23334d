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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from recoup.errors import DataError
from recoup.evaluate.items import Report, silent
from recoup.evaluate.one_pass import at_once, line_batches, lines, read_again
from recoup.evaluate.passes import LOGITS_TOKENS, Answer, Wanted, head_at, padded, runs, score
from recoup.models.load import LanguageModel
from recoup.models.sample import pad_id, position_ids

LEAST_SHARED = 32  # tokens that all contexts must begin with before they are read once for all

Pair = tuple[Sequence[int], Sequence[int]]  # context, continuation: token ids


@dataclass(frozen=True)
class _Row:
    """One input of the second pass: a continuation without its last token."""

    context: int  # its place in the cache
    tokens: tuple[int, ...]
    pairs: tuple[int, ...]  # the pairs that are scored on it


@dataclass(frozen=True)
class _Prefix:
    """Contexts as a cache."""

    cache: DynamicCache
    attention_CP: Bool[Tensor, "C P"]


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
        lines_of = {context: lines(context, continuations, by_context[context]) for context in ordered}
        ordered = [context for context in ordered if not read_again(lines_of[context])]
        kept = set(ordered)
        alone = [line for context, found in lines_of.items() if context not in kept for line in found]
        for batch in line_batches(alone, batch_tokens):
            starts = accumulate((line.num_targets for line in batch), initial=0)
            wanted = [
                Wanted(i, at, continuations[i]) for at, line in zip(starts, batch, strict=False) for i in line.pairs
            ]
            score(answers, at_once(model, batch), wanted)
            done += len(wanted)
            report(done, len(pairs))
    widths = [len(context) - opened for context in ordered]
    for run in runs(widths, lambda widest: min(batch_tokens // (opened + widest), LOGITS_TOKENS)):
        members = [by_context[context] for context in ordered[run]]
        firsts = [(i, place) for place, indices in enumerate(members) for i in indices]
        prefix, logits_CV = _read(model, opening, ordered[run])
        score(answers, logits_CV, [Wanted(i, place, continuations[i][:1]) for i, place in firsts])
        del logits_CV  # before those of the second pass are made
        done += sum(len(continuations[i]) == 1 for i, _ in firsts)
        report(done, len(pairs))
        for rows in _row_batches(members, continuations, prefix.attention_CP.shape[1], batch_tokens):
            starts = accumulate((len(row.tokens) for row in rows), initial=0)
            rest = [
                Wanted(i, at, continuations[i][1:]) for at, row in zip(starts, rows, strict=False) for i in row.pairs
            ]
            score(answers, _continue(model, prefix, rows), rest)
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
    for run in runs(widths, lambda widest: min(batch_tokens // (cached + widest), LOGITS_TOKENS // widest)):
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
    tokens_CT, real_CT = (x.to(model.device) for x in padded(rest, pad_id(model), left=True))
    attention_CP = torch.cat([opening.attention_CP.expand(len(rest), -1), real_CT], dim=1)
    cache = _rows_of(opening.cache, torch.zeros(len(rest), dtype=torch.long, device=model.device))
    last_CT = torch.zeros_like(real_CT)
    last_CT[:, -1] = True
    return _Prefix(cache, attention_CP), _logits(model, tokens_CT, attention_CP, cache, last_CT)


@torch.inference_mode()
def _continue(model: LanguageModel, prefix: _Prefix, rows: Sequence[_Row]) -> Float[Tensor, "N V"]:
    """The logits after every token of `rows`, row by row."""
    tokens_BT, real_BT = (x.to(model.device) for x in padded([row.tokens for row in rows], pad_id(model), left=False))
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
    with head_at(model, wanted_BT):
        output = model.model(
            tokens_BT,
            attention_mask=attention_BS.long(),
            position_ids=position_ids(attention_BS)[:, -tokens_BT.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
    logits_NV: Tensor = output.logits[0]
    return logits_NV


def _rows_of(cache: DynamicCache, places_B: Int[Tensor, " B"]) -> DynamicCache:
    """A cache of those rows; the original is left as it was (selecting and growing make new tensors)."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(places_B)
    return chosen
