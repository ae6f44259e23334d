"""Fine-tuning rows: chat-format JSON lines to token ids of a prompt and of the completion that is trained on.

A row is one of

- `{"messages": [..., {"role": "assistant", "content": ...}]}`;
- `{"prompt": text or messages, "completion": text or list of texts}`, where the completion may also be called `response`,
  `golden_response` or `answer`, and a list is joined by line breaks.

An `answer` that is one capital letter, under a system prompt that asks for `<answer>`, is put between
`<answer>` and `</answer>`, each on a line of its own: such rows (the Science task of SDFT, 2601.19897) store the letter alone.

The prompt's tokens are those that sampling starts from (`chat.prompt_ids`); the completion's end with the end-of-turn token
that the chat template closes an assistant's message with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from recoup.data.chat import SENTINEL, Messages, prompt_ids
from recoup.errors import DataError
from recoup.run_folder import read_jsonl, user_path

COMPLETION_FIELDS = ("completion", "response", "golden_response", "answer")
ANSWER_TAG = "<answer>"


@dataclass(frozen=True)
class Example:
    """One row as token ids; the loss is on `completion`, which ends with the end of turn."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class Examples:
    """The rows of a file that fit."""

    rows: tuple[Example, ...]
    num_dropped: int  # rows whose completion alone does not fit


def load_examples(
    file: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int, num_rows: int | None = None, seed: int = 0
) -> Examples:
    """Rows of a JSON-lines file, tokenised.

    Args:
        file: path; `$VARIABLES` and `~` are expanded.
        tokenizer: its chat template lays the rows out.
        max_tokens: longest prompt plus completion; a longer prompt loses its start, a completion never loses anything: a row
            whose completion leaves no room for a prompt is dropped and counted.
        num_rows: use this many rows, chosen by the seed; all when null or when the file holds fewer.
        seed: chooses the rows.

    Raises:
        DataError: the file is missing, malformed or empty, a row has no prompt or completion (the line is named), or none fits.
        SourceError: the tokenizer has no chat template, or the template refuses a row.
    """
    path = user_path(file)
    conversations = _chosen(_conversations(path), num_rows, seed)
    prompts = [prompt_ids(tokenizer, messages) for messages, _ in conversations]
    end = end_of_turn(tokenizer)
    completions = [
        [*tokenizer(text, add_special_tokens=False, verbose=False).input_ids, *end] for _, text in conversations
    ]
    rows = tuple(
        Example(tuple(prompt[-(max_tokens - len(completion)) :]), tuple(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
        if len(completion) < max_tokens
    )
    if not rows:
        raise DataError(f"{path}: no completion of {len(prompts)} rows fits max_tokens {max_tokens}; raise it")
    return Examples(rows, len(prompts) - len(rows))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the chat template puts after an assistant's text, up to its first special token; the end-of-text token if none."""
    turns = [{"role": "user", "content": SENTINEL}, {"role": "assistant", "content": SENTINEL}]
    _, _, after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(SENTINEL)
    ids = list(tokenizer(after, add_special_tokens=False).input_ids)
    special = [position for position, id_ in enumerate(ids) if _is_special(tokenizer, id_)]
    return ids[: special[0] + 1] if special else [int(tokenizer.eos_token_id)]


def messages_of(value: Any, where: str) -> Messages:
    """Text as one message of the user; a list of messages as it is, checked.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    try:
        messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in value]
    except (TypeError, KeyError):
        messages = []
    if not messages:
        raise DataError(f"{where}: the prompt is neither text nor a list of messages with role and content")
    return messages


def _conversations(path: Path) -> list[tuple[Messages, str]]:
    """The messages and the completion of every row."""
    rows = read_jsonl(path)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    with path.open(encoding="utf-8") as lines:  # blank lines are no rows, but they count as lines
        numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return [_conversation(row, f"{path}, line {number}") for number, row in zip(numbers, rows, strict=True)]


def _conversation(row: dict[str, Any], where: str) -> tuple[Messages, str]:
    if "messages" in row:
        *messages, last = messages_of(row["messages"], where)
        if not messages or last["role"] != "assistant" or not last["content"]:
            raise DataError(f"{where}: no completion; the last of several messages must be the assistant's")
        return messages, last["content"]
    if "prompt" not in row:
        raise DataError(f"{where}: no prompt; expected a field `messages` or `prompt`")
    prompt = messages_of(row["prompt"], where)
    field = next((name for name in COMPLETION_FIELDS if row.get(name)), None)
    if field is None:
        raise DataError(f"{where}: no completion; expected one of the fields {', '.join(COMPLETION_FIELDS)}")
    text = completion_text(row[field], f"{where}: {field!r}")
    return prompt, tagged(prompt, text) if field == "answer" else text


def completion_text(value: Any, where: str) -> str:
    """A completion that a row gives as text, or as a list of texts that are joined by line ends.

    Raises:
        DataError: it is neither.
    """
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{where} is neither text nor a list of texts")
    return "\n".join(parts)


def tagged(prompt: Messages, answer: str) -> str:
    """A single letter in the tags that the system prompt asks for; any other answer as it is."""
    asks = any(message["role"] == "system" and ANSWER_TAG in message["content"] for message in prompt)
    return f"<answer>\n{answer}\n</answer>" if asks and re.fullmatch("[A-Z]", answer) else answer


def _is_special(tokenizer: PreTrainedTokenizerBase, id_: int) -> bool:
    token = tokenizer.added_tokens_decoder.get(id_)
    return token is not None and token.special


def _chosen(
    conversations: Sequence[tuple[Messages, str]], num_rows: int | None, seed: int
) -> list[tuple[Messages, str]]:
    if num_rows is None:
        return list(conversations)
    order = torch.randperm(len(conversations), generator=torch.Generator().manual_seed(seed))
    return [conversations[i] for i in order[:num_rows].tolist()]
