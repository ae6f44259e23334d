"""Perplexity of a text file: an item is a window of tokens, its score the mean log p of a token in it.

The text is one stream of tokens, cut into windows of `WINDOW_TOKENS` (of the model's context, where that is shorter); each
token is predicted once, from the tokens before it in its window and the one before the window, as lm-eval's rolling
log-likelihoods are. What is left at the end and fills no window is dropped, so that all items weigh the same and the
perplexity per token is exp(−mean score); models are compared by the scores, item by item, because they pair. A file of JSON
lines holds a document's `text` on each; documents are joined by an empty line, as in the papers on quantization.

Unlike lm-eval, the first token is predicted from the token that opens texts alone, and that token itself is never
predicted. Perplexities per token compare models of one tokenizer only; some tokenizers take the `<unk>` of WikiText for
their own unknown token.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from recoup.errors import DataError
from recoup.evaluate.continuations import Pair, context_length
from recoup.evaluate.likelihood_task import Answer, Item, LikelihoodTask, opening_token
from recoup.models.load import LanguageModel
from recoup.results.evaluate import MEAN_LOGP
from recoup.run_folder import read_jsonl

WINDOW_TOKENS = 2048  # as in GPTQ (arXiv 2210.17323) and most papers on compression since


def text_task(name: str, file: str, about: str) -> LikelihoodTask:
    """Perplexity of `file`, plain text or JSON lines with a `text` each, under the data folder."""
    return LikelihoodTask(name=name, file=file, metric=MEAN_LOGP, items=items, about=about)


def items(model: LanguageModel, path: Path) -> list[Item]:
    """One item per window.

    Raises:
        DataError: the file is missing or holds no text.
    """
    ids = model.tokenizer(read_text(path), add_special_tokens=False, verbose=False).input_ids
    if not ids:
        raise DataError(f"{path}: holds no text")
    width = min(WINDOW_TOKENS, context_length(model))
    return [
        Item((pair,), gold="", grade=partial(grade, len(pair[1])))
        for pair in windows(ids, width, opening_token(model.tokenizer))
    ]


def read_text(path: Path) -> str:
    """The text of a file; the documents of JSON lines are joined by an empty line.

    Raises:
        DataError: the file is missing, is not UTF-8, or a row of it has no `text`.
    """
    if path.suffix == ".jsonl":
        rows = read_jsonl(path)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("text"), str):
                raise DataError(f"{path}, row {number}: has no `text`")
        return "\n\n".join(row["text"] for row in rows)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None


def windows(ids: Sequence[int], width: int, opening: int) -> Iterator[Pair]:
    """Pairs of one token of context and `width` tokens to predict; a text shorter than that is one window."""
    for start in range(0, max(1, len(ids) - width + 1), width):
        yield [ids[start - 1] if start else opening], ids[start : start + width]


def grade(num_tokens: int, answers: Sequence[Answer]) -> dict[str, float]:
    """Mean log p of a token, in nats."""
    ((logp, _greedy),) = answers
    return {MEAN_LOGP: logp / num_tokens}


WIKITEXT2 = text_task("wikitext2", "wikitext2/valid.txt", "log p per token of Wikipedia text (needs evaluate.data)")
C4 = text_task("c4", "c4/c4_demo.jsonl", "log p per token of web text (needs evaluate.data)")
