"""Completions of prompts as text, in batches of bounded size, with progress."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from recoup.evaluate.items import Report, silent
from recoup.models.load import LanguageModel
from recoup.models.sample import DEFAULT_BATCH, Sampling, sample

CACHED_SHARE = 4  # batch_tokens' worth of cache: a decode step itself sees one token a row


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    batch_tokens: int,
    report: Report = silent,
    stops: Sequence[str] = (),
) -> list[str]:
    """What the model says to each prompt (token ids), special tokens left out.

    Args:
        model: the model that speaks.
        prompts: token ids.
        settings: how tokens are drawn; the batch size is not read from here.
        batch_tokens: tokens of a forward pass; a batch of prompts and completions holds four times as many, pads included.
        report: told how many prompts are done.
        stops: a completion ends where one of these is written; the stop itself stays.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    stop = _writes(model.tokenizer, stops) if any(stops) else None
    start = 0
    while start < len(order):
        longest = len(prompts[order[start]]) + settings.max_tokens
        size = max(1, min(CACHED_SHARE * batch_tokens // longest, DEFAULT_BATCH))
        chosen = order[start : start + size]
        drawn = Sampling(settings.max_tokens, settings.temperature, settings.seed + start, size, stop=stop)
        rollouts = sample(model, [prompts[index] for index in chosen], drawn)
        for index, ids in zip(chosen, rollouts.completions(), strict=True):
            texts[index] = str(model.tokenizer.decode(ids, skip_special_tokens=True))
        start += size
        report(min(start, len(order)), len(order))
    return texts


def _writes(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """Whether a completion's last token finishes one of `stops`."""
    wanted = [stop for stop in stops if stop]
    most = 1 + max(len(stop.encode()) for stop in wanted)  # a token is a byte at least; a decoder may strip a space

    def written(tokens: Sequence[int]) -> bool:
        tail = str(tokenizer.decode(tokens[-most:], skip_special_tokens=True))
        return any(stop in tail for stop in wanted)

    return written
