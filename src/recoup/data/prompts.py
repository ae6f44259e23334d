"""Prompts: from a file, a hub data set, or written by the model itself (Magpie, arXiv 2406.08464).

Train and held-out prompts are told apart by a hash of their text, so they never overlap, whatever the source, the seed and
the order: one prompt in five is held out.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from recoup.data.chat import opened_user_turn, prompt_ids
from recoup.errors import DataError
from recoup.models.load import LanguageModel
from recoup.models.sample import Sampling, sample
from recoup.run_folder import read_jsonl, user_path

Split = Literal["train", "held_out", "all"]

HELD_OUT_SHARE = 5  # one in five
SELF_TEMPERATURE = 1.0  # Magpie samples user turns at 1.0: diversity is the point
SELF_MAX_TOKENS = 64
SELF_ROUNDS = 12  # give up when so many rounds of sampling do not yield enough prompts
SELF_BATCH = 96
MIN_WORDS, MIN_CHARACTERS, MIN_LETTER_SHARE = 3, 12, 0.6
PROMPT_FIELDS = ("messages", "prompt", "text", "question", "instruction")


@dataclass(frozen=True)
class Prompt:
    """A conversation that an assistant is to answer, as token ids and as the last thing the user said."""

    text: str
    ids: tuple[int, ...]


def load_prompts(source: str, writer: LanguageModel, count: int, seed: int, split: Split = "all") -> list[Prompt]:
    """At most `count` prompts of `split`, in an order that the seed decides.

    Args:
        source: `self`, a JSONL or text file, or `hub:NAME`.
        writer: writes the prompts when `source` is `self`; its tokenizer and chat template serve every source.
        count: prompts wanted; a file may hold fewer.
        seed: decides what is written or chosen.
        split: `train` and `held_out` never share a prompt.

    Raises:
        DataError: the source is missing, malformed, or holds no prompt of this split.
        SourceError: the model has no chat template.
    """
    if source == "self":
        return _self_written(writer, count, seed, split)
    rows = _hub_rows(source.removeprefix("hub:")) if source.startswith("hub:") else _file_rows(user_path(source))
    conversations = [_conversation(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]
    chosen = {_key(c): c for c in conversations if _in_split(_key(c), split)}
    if not chosen:
        raise DataError(
            f"{source}: holds no {split.replace('_', '-')} prompt ({len(rows)} rows); give more prompts, or `self`"
        )
    keys = sorted(chosen, key=lambda text: _digest(f"{seed} {text}"))[:count]
    return [_prompt(writer.tokenizer, chosen[key]) for key in keys]


def fitting(prompts: list[Prompt], max_tokens: int) -> list[Prompt]:
    """Prompts of at most `max_tokens` tokens; longer ones are left out, not cut.

    Raises:
        DataError: none fits.
    """
    kept = [prompt for prompt in prompts if len(prompt.ids) <= max_tokens]
    if not kept:
        shortest = min(len(prompt.ids) for prompt in prompts)
        raise DataError(
            f"none of {len(prompts)} prompts fits {max_tokens} tokens (the shortest has {shortest}); raise max_prompt_tokens"
        )
    return kept


def _self_written(writer: LanguageModel, count: int, seed: int, split: Split) -> list[Prompt]:
    """Open a user turn, let the model go on, keep what reads like a prompt and was not written before."""
    opened = opened_user_turn(writer.tokenizer)
    found: dict[str, str] = {}
    for round_ in range(SELF_ROUNDS):
        settings = Sampling(SELF_MAX_TOKENS, SELF_TEMPERATURE, seed=seed * SELF_ROUNDS + round_, batch_size=SELF_BATCH)
        for ids in sample(writer, [opened] * SELF_BATCH, settings).completions():
            text = writer.tokenizer.decode(ids, skip_special_tokens=True).strip()
            ended = len(ids) < SELF_MAX_TOKENS
            if ended and _reads_like_a_prompt(text) and _in_split(text, split):
                found.setdefault(_fingerprint(text), text)
        if len(found) >= count:
            break
    if not found:
        raise DataError(
            f"{writer.name}: wrote no usable prompt in {SELF_ROUNDS * SELF_BATCH} tries; give a prompt file instead of `self`"
        )
    return [_prompt(writer.tokenizer, ({"role": "user", "content": text},)) for text in list(found.values())[:count]]


def _reads_like_a_prompt(text: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return (
        len(text) >= MIN_CHARACTERS
        and len(text.split()) >= MIN_WORDS
        and letters >= MIN_LETTER_SHARE * len(text)
        and all(character.isprintable() or character in "\n\t" for character in text)
    )


def _fingerprint(text: str) -> str:
    """Near-duplicates differ in case, digits and punctuation only."""
    return " ".join(re.findall(r"[^\W\d]+", text.lower()))


def _file_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    if not path.is_file():
        raise DataError(f"{path}: no such prompt file; give a .jsonl or .txt file, `hub:NAME`, or `self`")
    return [{"prompt": line.strip()} for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _hub_rows(name: str) -> list[dict[str, Any]]:
    from datasets import load_dataset  # noqa: PLC0415  slow to import, rarely needed

    try:
        return [dict(row) for row in load_dataset(name, split="train")]
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        raise DataError(f"hub:{name}: cannot load this data set ({str(error).splitlines()[0]})") from None


def _conversation(row: dict[str, Any], where: str) -> tuple[dict[str, str], ...]:
    """Messages of a row, without the answer it may end with."""
    field = next((name for name in PROMPT_FIELDS if row.get(name)), None)
    if field is None:
        raise DataError(f"{where}: no prompt; expected one of the fields {', '.join(PROMPT_FIELDS)}")
    value = row[field]
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    try:
        messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in value)
    except (TypeError, KeyError):
        raise DataError(f"{where}: {field!r} is neither text nor a list of messages with role and content") from None
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _key(messages: tuple[dict[str, str], ...]) -> str:
    return messages[-1]["content"]


def _prompt(tokenizer: PreTrainedTokenizerBase, messages: tuple[dict[str, str], ...]) -> Prompt:
    return Prompt(_key(messages), tuple(prompt_ids(tokenizer, messages)))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _in_split(text: str, split: Split) -> bool:
    held_out = _digest(text) % HELD_OUT_SHARE == 0
    return split == "all" or held_out == (split == "held_out")
