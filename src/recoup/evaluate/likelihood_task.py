"""Tasks over a file of the data folder that need no generation: log p of given continuations decides the scores.

The harness does the same for lm-eval's own tasks over data that it can load; here the rows come from a file. Texts become
token ids as lm-eval's do (`TemplateLM._encode_pair`, 0.4.13), so equal rows get equal scores; lm-eval itself, which takes
seconds to import, is not needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from recoup.config import Evaluate
from recoup.errors import DataError
from recoup.evaluate.continuations import Pair, continuation_logp
from recoup.evaluate.file_task import FileTask, data_file
from recoup.evaluate.items import NUM_SAMPLES, Report, choose, silent
from recoup.models.load import LanguageModel
from recoup.results import TaskItems
from recoup.run_folder import read_jsonl

Row = dict[str, Any]
Answer = tuple[float, bool]  # log p(continuation | context) in nats; whether greedy decoding would write it


@dataclass(frozen=True)
class Item:
    """One item: contexts with continuations (token ids), and named scores made of the answers to them."""

    pairs: tuple[Pair, ...]
    gold: str  # for the report
    grade: Callable[[Sequence[Answer]], dict[str, float]]


@dataclass(frozen=True)
class LikelihoodTask(FileTask):
    """One task: `items` reads the file with the tokenizer of the model."""

    items: Callable[[LanguageModel, Path], list[Item]]


def score(model: LanguageModel, task: LikelihoodTask, config: Evaluate, report: Report = silent) -> TaskItems:
    """One model on one task.

    Raises:
        DataError: the file is missing or malformed, or a continuation does not fit the model's context.
    """
    items = task.items(model, data_file(task, config.data))
    numbers = choose(len(items), config.limit_of(task.name), config.seed, task.name)
    chosen = [items[number] for number in numbers]
    answers = iter(continuation_logp(model, [p for item in chosen for p in item.pairs], config.batch_tokens, report))
    answered = [(item, [next(answers) for _ in item.pairs]) for item in chosen]
    grades = [item.grade(found) for item, found in answered]
    ids = tuple(f"{task.name}/{number}" for number in numbers)
    return TaskItems(
        task=task.name,
        metric=task.metric,
        item_ids=ids,
        scores=tuple(grade[task.metric] for grade in grades),
        further={name: tuple(grade[name] for grade in grades) for name in grades[0] if name != task.metric},
        samples=tuple(
            {"item": name, **_shown(model.tokenizer, item, found), **grade}
            for name, (item, found), grade in zip(ids[:NUM_SAMPLES], answered, grades, strict=False)
        ),
    )


def items_of_rows(path: Path, item: Callable[[Row], Item]) -> list[Item]:
    """One item for each row of a JSON-lines file.

    Raises:
        DataError: the file is missing, empty, or a row lacks a field.
    """
    items = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            items.append(item(row))
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(f"{path}, row {number}: not a row of this task ({type(error).__name__}: {error})") from None
    if not items:
        raise DataError(f"{path}: holds no rows")
    return items


def text_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Token ids of a context and what follows it, cut where the tokens of the context alone end.

    Spaces at the end of the context go to the continuation, where most tokenizers join them with the word. A text that
    already begins with the token that opens texts gets no second one.

    Args:
        tokenizer: of the model that is scored.
        context: not empty.
        continuation: what is scored.
    """
    bare = context.rstrip()
    opening = tokenizer.decode([opening_token(tokenizer)])
    whole, before = (
        tokenizer.encode(text, add_special_tokens=not text.startswith(opening))
        for text in (context + continuation, bare)
    )
    return before, whole[len(before) :]


def opening_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands before a text without context: the beginning of a sequence, else its end."""
    opening = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if opening is None else opening)


def _shown(tokenizer: PreTrainedTokenizerBase, item: Item, answers: Sequence[Answer]) -> dict[str, Any]:
    """What the report shows of an item: the (first) context, and each continuation with its log p."""
    texts = [tokenizer.decode(continuation) for _, continuation in item.pairs]
    return {
        "prompt": tokenizer.decode(item.pairs[0][0]),
        "answers": [[text, f"{logp:.3f}"] for text, (logp, _greedy) in zip(texts, answers, strict=True)],
        "gold": item.gold,
    }
