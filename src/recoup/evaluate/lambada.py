"""LAMBADA (Paperno et al., arXiv 1606.06031): the last word of a passage that only the whole passage tells.

As lm-eval's `lambada_openai`: the word, with the space before it, is right when greedy decoding writes all of its tokens.
`logp` is log p of the word in nats; LAMBADA's perplexity is exp(−mean logp).
"""

from collections.abc import Sequence
from pathlib import Path

from recoup.evaluate.likelihood_task import Answer, Item, LikelihoodTask, Row, items_of_rows, text_pair
from recoup.models.load import LanguageModel


def items(model: LanguageModel, path: Path) -> list[Item]:
    """One item per row: `context`, and the last word as `continuation`.

    Raises:
        DataError: the file is missing, empty, or a row lacks a field.
    """

    def item(row: Row) -> Item:
        word = str(row["continuation"])
        return Item((text_pair(model.tokenizer, row["context"], f" {word}"),), gold=word, grade=grade)

    return items_of_rows(path, item)


def grade(answers: Sequence[Answer]) -> dict[str, float]:
    """`acc`: the word is what greedy decoding writes; `logp` in nats."""
    ((logp, greedy),) = answers
    return {"acc": float(greedy), "logp": logp}


TASK = LikelihoodTask(
    name="lambada_openai",
    file="lambada/lambada_openai.jsonl",
    metric="acc",
    items=items,
    about="the last word of a passage (needs evaluate.data)",
)
