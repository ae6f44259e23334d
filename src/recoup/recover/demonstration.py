"""Self-Distillation Fine-Tuning (2601.19897): the teacher sees a demonstration in its prompt, the student does not.

Wording of the teacher's prompt: the published code's, which puts question, demonstration and request into the last message.
Where we differ: earlier messages (a system prompt) stay as they are, and a budget in tokens never touches the question. A peer
cuts long teacher prompts on the left, which drops the question; here a long demonstration loses its end, and is counted.

Student and teacher score the same completions after different prompts: `with_prompts` keeps their order, so that row i of N
completion tokens is the same token for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from recoup.data.chat import Messages, prompt_ids
from recoup.data.prompts import Prompt
from recoup.errors import DataError
from recoup.models.sample import Rollouts, pack

TEMPLATE = (
    "{question}\n\nThis is an example for a response to the question:\n{demonstration}\n\n"
    "Now answer with a response of your own, including the thinking process."
)
BROKEN_CHARACTER = "\ufffd"  # what a cut between the bytes of a character decodes to


@dataclass(frozen=True)
class Demonstrated:
    """Teacher prompts, one for each prompt, in order."""

    ids: tuple[tuple[int, ...], ...]
    num_cut: int  # demonstrations that lost their end


def demonstration_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_tokens: int
) -> Demonstrated:
    """The teacher's prompts: question, demonstration, request to answer.

    Args:
        tokenizer: its chat template lays the messages out.
        prompts: with `question` and `demonstration`.
        max_tokens: longest teacher prompt. A demonstration that does not fit loses its end.

    Raises:
        DataError: a prompt has no demonstration, or a question leaves no room for one.
        SourceError: the tokenizer has no chat template, or the template refuses a prompt.
    """
    found = [_fitted(tokenizer, prompt, max_tokens) for prompt in prompts]
    return Demonstrated(tuple(ids for ids, _ in found), sum(cut for _, cut in found))


def with_prompts(rollouts: Rollouts, prompts: Sequence[Sequence[int]]) -> Rollouts:
    """The same completions after other prompts.

    Completion tokens keep their order: `tokens_BT[completion_BT]` is the same before and after. Log-probabilities of the
    sampler are left out: they belong to the prompts that it saw.

    Args:
        rollouts: B of them.
        prompts: B new ones, none empty.
    """
    return pack(prompts, rollouts.completions(), pad=0, device=rollouts.tokens_BT.device)  # masked: any id will do


def _fitted(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int) -> tuple[tuple[int, ...], bool]:
    """Ids of one teacher prompt, and whether its demonstration was cut."""
    if not prompt.demonstration or not prompt.question:
        raise DataError(f"prompt {_short(prompt.text)}: has no answer to demonstrate; give rows with a completion")
    ids = prompt_ids(tokenizer, demonstrated(prompt.question, prompt.demonstration))
    if len(ids) <= max_tokens:
        return tuple(ids), False
    kept = list(tokenizer(prompt.demonstration, add_special_tokens=False, verbose=False).input_ids)
    while len(ids) > max_tokens:
        # at least one token less a round: tokens may merge with their neighbours, so one round can miss by a few
        kept = kept[: max(0, len(kept) - (len(ids) - max_tokens))]
        text = str(tokenizer.decode(kept, clean_up_tokenization_spaces=False)).rstrip(BROKEN_CHARACTER)
        if not text:
            alone = len(prompt_ids(tokenizer, demonstrated(prompt.question, "")))
            raise DataError(
                f"prompt {_short(prompt.text)}: the question takes {alone} of the teacher's {max_tokens} prompt tokens, which "
                "leaves no room for a demonstration; raise the limit, or drop this row"
            )
        ids = prompt_ids(tokenizer, demonstrated(prompt.question, text))
    return tuple(ids), True


def demonstrated(question: Messages, demonstration: str) -> list[dict[str, str]]:
    """The question's messages, the last of which goes on with the demonstration."""
    *before, last = [dict(message) for message in question]
    text = TEMPLATE.format(question=last["content"], demonstration=demonstration)
    return [*before, {**last, "content": text}]


def _short(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 1] + "…")
