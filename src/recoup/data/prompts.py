"""Prompts: from a file, a hub data set, or written by the model itself (Magpie, arXiv 2406.08464).

Train and held-out prompts are told apart by a hash of their text, so they never overlap, whatever the source, the seed and
the order: one prompt in five is held out.

A row of a file or data set may also hold the answer (the fields of `recoup.data.sft`: the assistant's last message, `completion`,
`response`, `golden_response` or `answer`), which a term may train on or show to its teacher, and a `group`, by which terms
share a file between them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from recoup.data.chat import opened_user_turn, prompt_ids
from recoup.data.sft import COMPLETION_FIELDS, completion_text, end_of_turn, tagged
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
    question: tuple[dict[str, str], ...] = field(default=(), hash=False)  # the messages that `ids` are laid out from
    demonstration: str | None = None  # the row's answer as text; null where it has none
    answer: tuple[int, ...] | None = None  # the row's answer as token ids, which end with the end of turn
    group: str | None = None

    def to_row(self) -> dict[str, Any]:
        """For JSON, without what is not there; `from_row` gives an equal prompt back."""
        optional = {"demonstration": self.demonstration, "answer": self.answer, "group": self.group}
        row = {"text": self.text, "ids": self.ids, "question": self.question, **optional}
        return {name: value for name, value in row.items() if value is not None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Prompt":
        """The prompt that `to_row` wrote; other fields of the row are passed over."""
        answer = row.get("answer")
        return cls(
            row["text"],
            tuple(row["ids"]),
            tuple(row.get("question", ())),
            row.get("demonstration"),
            None if answer is None else tuple(answer),
            row.get("group"),
        )


@dataclass(frozen=True)
class _Row:
    """What a row of a source says."""

    question: tuple[dict[str, str], ...]
    demonstration: str | None = None
    group: str | None = None

    @property
    def text(self) -> str:
        return self.question[-1]["content"]


def load_prompts(
    source: str, writer: LanguageModel, count: int, seed: int, split: Split = "all", group: str | None = None
) -> list[Prompt]:
    """At most `count` prompts of `split`, in an order that the seed decides.

    Args:
        source: `self`, a JSONL or text file, or `hub:NAME`.
        writer: writes the prompts when `source` is `self`; its tokenizer and chat template serve every source.
        count: prompts wanted; a file may hold fewer.
        seed: decides what is written or chosen.
        split: `train` and `held_out` never share a prompt.
        group: only rows whose field `group` says this.

    Raises:
        DataError: the source is missing, malformed, or holds no prompt of this split or group.
        SourceError: the model has no chat template.
    """
    if source == "self":
        if group is not None:
            raise DataError(f"self-written prompts have no group {group!r}; give a prompt file, or leave `group` out")
        return _self_written(writer, count, seed, split)
    raw = _hub_rows(source.removeprefix("hub:")) if source.startswith("hub:") else _file_rows(user_path(source))
    rows = _of_group([_row(row, f"{source}, row {number}") for number, row in enumerate(raw, start=1)], group, source)
    chosen = {row.text: row for row in rows if _in_split(row.text, split)}
    if not chosen:
        raise DataError(
            f"{source}: holds no {split.replace('_', '-')} prompt ({len(rows)} rows); give more prompts, or `self`"
        )
    keys = sorted(chosen, key=lambda text: _digest(f"{seed} {text}"))[:count]
    return _prompts(writer.tokenizer, [chosen[key] for key in keys])


def answered(prompts: list[Prompt], source: str) -> list[Prompt]:
    """Prompts whose row holds an answer; the others are left out.

    Raises:
        DataError: none does.
    """
    kept = [prompt for prompt in prompts if prompt.answer is not None]
    if not kept:
        raise DataError(
            f"{source}: none of {len(prompts)} prompts has an answer; give rows that end with the assistant's message, or have "
            f"one of the fields {', '.join(COMPLETION_FIELDS)}"
        )
    return kept


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
    rows = [_Row(({"role": "user", "content": text},)) for text in list(found.values())[:count]]
    return _prompts(writer.tokenizer, rows)


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


def _row(row: dict[str, Any], where: str) -> _Row:
    """Messages of a row, the answer that it ends with or names, and its group."""
    name = next((name for name in PROMPT_FIELDS if row.get(name)), None)
    if name is None:
        raise DataError(f"{where}: no prompt; expected one of the fields {', '.join(PROMPT_FIELDS)}")
    group = None if row.get("group") is None else str(row["group"])
    value = row[name]
    if isinstance(value, str):
        question: tuple[dict[str, str], ...] = ({"role": "user", "content": value},)
        return _Row(question, _named_answer(row, question, where), group)
    try:
        messages = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in value)
    except (TypeError, KeyError):
        raise DataError(f"{where}: {name!r} is neither text nor a list of messages with role and content") from None
    if messages[-1]["role"] == "assistant":
        if len(messages) == 1:
            raise DataError(f"{where}: {name!r} holds an answer and no question")
        return _Row(messages[:-1], messages[-1]["content"] or None, group)
    return _Row(messages, _named_answer(row, messages, where), group)


def _named_answer(row: dict[str, Any], question: tuple[dict[str, str], ...], where: str) -> str | None:
    """The answer that stands in a field of its own. Data sets put other things there too: what is no text is no answer."""
    name = next((name for name in COMPLETION_FIELDS if row.get(name)), None)
    if name is None:
        return None
    try:
        text = completion_text(row[name], where)
    except DataError:
        return None
    return tagged(list(question), text) if name == "answer" else text


def _of_group(rows: list[_Row], group: str | None, source: str) -> list[_Row]:
    if group is None:
        return rows
    kept = [row for row in rows if row.group == group]
    if not kept:
        there = ", ".join(sorted({repr(row.group) for row in rows if row.group is not None})) or "none"
        raise DataError(f"{source}: no row's field `group` says {group!r} (groups there: {there})")
    return kept


def _prompts(tokenizer: PreTrainedTokenizerBase, rows: list[_Row]) -> list[Prompt]:
    end = end_of_turn(tokenizer) if any(row.demonstration for row in rows) else []
    return [_prompt(tokenizer, row, end) for row in rows]


def _prompt(tokenizer: PreTrainedTokenizerBase, row: _Row, end: list[int]) -> Prompt:
    answer = None
    if row.demonstration:
        answer = (*tokenizer(row.demonstration, add_special_tokens=False, verbose=False).input_ids, *end)
    ids = tuple(prompt_ids(tokenizer, row.question))
    return Prompt(row.text, ids, row.question, row.demonstration, answer, row.group)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _in_split(text: str, split: Split) -> bool:
    held_out = _digest(text) % HELD_OUT_SHARE == 0
    return split == "all" or held_out == (split == "held_out")
