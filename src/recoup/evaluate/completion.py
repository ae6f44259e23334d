"""Completions of prompts as text, in batches of bounded size, with progress."""

from collections.abc import Sequence

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
) -> list[str]:
    """What the model says to each prompt (token ids), special tokens left out.

    Args:
        model: the model that speaks.
        prompts: token ids.
        settings: how tokens are drawn; the batch size is not read from here.
        batch_tokens: tokens of a forward pass; a batch of prompts and completions holds four times as many, pads included.
        report: told how many prompts are done.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts = [""] * len(prompts)
    start = 0
    while start < len(order):
        longest = len(prompts[order[start]]) + settings.max_tokens
        size = max(1, min(CACHED_SHARE * batch_tokens // longest, DEFAULT_BATCH))
        chosen = order[start : start + size]
        drawn = Sampling(settings.max_tokens, settings.temperature, settings.seed + start, size)
        rollouts = sample(model, [prompts[index] for index in chosen], drawn)
        for index, ids in zip(chosen, rollouts.completions(), strict=True):
            texts[index] = str(model.tokenizer.decode(ids, skip_special_tokens=True))
        start += size
        report(min(start, len(order)), len(order))
    return texts
