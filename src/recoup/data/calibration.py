"""Calibration text: what a model is run on to see which of its parts are used.

`self` (the model writes prompts and answers them, so no data is needed), a text file, or JSON lines. Long texts are cut into
consecutive chunks; the last sequence is cut so that the number of tokens is met exactly, unless the source holds fewer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from recoup.data.chat import prompt_ids
from recoup.data.prompts import load_prompts
from recoup.data.sft import messages_of
from recoup.errors import DataError
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts, Sampling, pack, pad_id, sample
from recoup.run_folder import read_jsonl, user_path

CHUNK_TOKENS = 256
BATCH_SEQUENCES = 8
SELF_ANSWER_TOKENS = 128
SELF_CONVERSATION_TOKENS = 64  # a prompt and an answer rarely have fewer, so enough prompts are asked for
SELF_TEMPERATURE = 1.0  # the model's own distribution
TEXT_FIELDS = ("text", "messages", "prompt")


def calibration_rollouts(source: str, model: LanguageModel, num_tokens: int, seed: int) -> list[Rollouts]:
    """Batches with `num_tokens` real tokens in all, or as many as the source holds. They hold no completions.

    Args:
        source: `self`; a text file, read from its beginning; or a .jsonl file whose rows have a field `text` (taken as it
            is), `messages` or `prompt` (laid out by the chat template), in an order that the seed decides.
        model: writes the text when `source` is `self`; its tokenizer serves every source.
        num_tokens: tokens wanted.
        seed: decides what is written or chosen.

    Raises:
        DataError: the file is missing, malformed or empty, or the model writes no usable prompt.
        SourceError: the model has no chat template, and the source needs one.
    """
    if source == "self":
        documents = _self_written(model, num_tokens, seed)
    elif source.endswith(".jsonl"):
        documents = _rows(user_path(source), model.tokenizer, seed)
    else:
        documents = _text(user_path(source), model.tokenizer, num_tokens)
    sequences = list(_first_tokens(_chunks(documents), num_tokens))
    if not sequences:
        raise DataError(f"{source}: holds no calibration text")
    groups = [sequences[i : i + BATCH_SEQUENCES] for i in range(0, len(sequences), BATCH_SEQUENCES)]
    return [pack(group, [[]] * len(group), pad_id(model), model.device) for group in groups]


def _self_written(model: LanguageModel, num_tokens: int, seed: int) -> Iterator[list[int]]:
    prompts = load_prompts("self", model, -(-num_tokens // SELF_CONVERSATION_TOKENS), seed)
    rollouts = sample(model, [prompt.ids for prompt in prompts], Sampling(SELF_ANSWER_TOKENS, SELF_TEMPERATURE, seed))
    for tokens_T, attention_T in zip(rollouts.tokens_BT, rollouts.attention_BT, strict=True):
        yield tokens_T[attention_T].tolist()


def _text(path: Path, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Iterator[list[int]]:
    """One document: the file's beginning, line by line, so that a large file is not tokenised whole."""
    if not path.is_file():
        raise DataError(f"{path}: no such calibration file; give a .txt or .jsonl file, or `self`")
    ids: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            ids += tokenizer(line, add_special_tokens=False, verbose=False).input_ids
            if len(ids) >= num_tokens:
                break
    yield ids


def _rows(path: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[list[int]]:
    rows = read_jsonl(path)
    for index in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist():
        row, where = rows[index], f"{path}, row {index + 1}"
        field = next((name for name in TEXT_FIELDS if row.get(name)), None)
        if field is None:
            raise DataError(f"{where}: no text; expected one of the fields {', '.join(TEXT_FIELDS)}")
        if field == "text":
            yield tokenizer(str(row["text"]), add_special_tokens=False, verbose=False).input_ids
        else:
            yield prompt_ids(tokenizer, messages_of(row[field], where))


def _chunks(documents: Iterable[list[int]]) -> Iterator[list[int]]:
    for ids in documents:
        for start in range(0, len(ids), CHUNK_TOKENS):
            yield ids[start : start + CHUNK_TOKENS]


def _first_tokens(sequences: Iterable[list[int]], num_tokens: int) -> Iterator[list[int]]:
    """Sequences until `num_tokens` are reached, the last one cut."""
    left = num_tokens
    for ids in sequences:
        yield ids[:left]
        left -= len(ids)
        if left <= 0:
            return
