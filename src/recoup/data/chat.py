"""Chat templates: messages to token ids, and the opened user turn that a model writes prompts into."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from recoup.errors import SourceError

Messages = Sequence[Mapping[str, str]]
SENTINEL = "\u2063prompt\u2063"  # invisible separators: no template and no text holds this


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a conversation, up to where the assistant begins to answer.

    Raises:
        SourceError: the tokenizer has no chat template, or the template refuses the messages.
    """
    return list(tokenizer(_render(tokenizer, messages, answer=True), add_special_tokens=False).input_ids)


def opened_user_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation up to where the user begins to speak (Magpie, 2406.08464, section 2.1).

    Raises:
        SourceError: as for `prompt_ids`.
    """
    before, _, _ = _render(tokenizer, [{"role": "user", "content": SENTINEL}], answer=False).partition(SENTINEL)
    ids = list(tokenizer(before, add_special_tokens=False).input_ids)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return ids or [int(start)]  # a plain template opens with nothing


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer: bool) -> str:
    if not tokenizer.chat_template:
        raise SourceError(
            f"{tokenizer.name_or_path}: has no chat template; "
            "set `chat_template` to a Jinja file, or to `plain` to send text as it is"
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is a program of its author's: whatever it raises is about these messages
        raise SourceError(f"{tokenizer.name_or_path}: the chat template refuses a prompt ({error})") from None
    return str(text)
