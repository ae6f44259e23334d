"""The tokens that changed most: where the student's distribution is farthest from the reference's, in context.

A token may be a part of a character (byte-level BPE, SentencePiece's byte tokens). Its text is what it adds to the text
before it; where that is no whole character, its bytes are shown, as `<0xE2><0x82>`.

Shapes: N completion tokens.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from recoup.data.prompts import Prompt
from recoup.evaluate.fidelity import TokenValues
from recoup.models.sample import Rollouts
from recoup.results import ChangedToken

MOST_TOKENS = 20
MOST_OF_A_PROMPT = 3  # one bad answer would fill the list
LEAST_NATS = 0.01  # a smaller KL is rounding: nobody would see a change
BEFORE_CHARACTERS = 80
PART = "\ufffd"  # what decoders write for a part of a character
PRINTED = [
    *range(0x21, 0x7F),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
]  # bytes that byte-level BPE writes as themselves
OTHERS = [byte for byte in range(0x100) if byte not in PRINTED]  # these it writes as U+0100 and on (GPT-2's table)
BYTES = {chr(byte): byte for byte in PRINTED} | {chr(0x100 + n): byte for n, byte in enumerate(OTHERS)}


def changed_tokens(
    prompts: Sequence[Prompt], rollouts: Rollouts, values: TokenValues, tokenizer: PreTrainedTokenizerBase
) -> tuple[ChangedToken, ...]:
    """At most 20 tokens of the reference's completions, largest KL first, at most 3 of one prompt.

    Args:
        prompts: what was asked.
        rollouts: the reference's completions.
        values: the student against the reference on them.
        tokenizer: of either.
    """
    completions = rollouts.completions()
    positions = values.position_N.tolist()
    taken: Counter[int] = Counter()
    found: list[ChangedToken] = []
    for n in values.kl_N.argsort(descending=True, stable=True).tolist():
        kl, row = float(values.kl_N[n]), int(values.row_N[n])
        if len(found) == MOST_TOKENS or kl < LEAST_NATS:
            break
        if taken[row] == MOST_OF_A_PROMPT:
            continue
        taken[row] += 1
        before, token = completions[row][: positions[n]], completions[row][positions[n]]
        found.append(
            ChangedToken(
                prompt=prompts[row].text,
                before=_decode(tokenizer, before).rstrip(PART)[-BEFORE_CHARACTERS:],
                token=token_text(tokenizer, before, token),
                student_token=token_text(tokenizer, before, int(values.student_token_N[n])),
                kl_nats=kl,
                reference_p=math.exp(-float(values.reference_nll_N[n])),
                student_p=math.exp(-float(values.student_nll_N[n])),
            )
        )
    return tuple(found)


def token_text(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], token: int) -> str:
    """What `token` adds to the text of the tokens before it; its bytes where that is no whole character."""
    without, whole = _decode(tokenizer, before), _decode(tokenizer, [*before, token])
    added = whole.removeprefix(without)
    if added and whole.startswith(without) and PART not in added:
        return added
    piece = tokenizer.convert_ids_to_tokens(token)
    return f"<id {token}>" if piece is None else _bytes(piece)  # a head may be wider than the vocabulary


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _bytes(piece: str) -> str:
    """A vocabulary's entry as bytes; one that is written out already, such as `<0xE2>` or a word, stays as it is."""
    if piece.isascii() or not all(character in BYTES for character in piece):
        return piece
    return re.sub(".", lambda found: f"<0x{BYTES[found[0]]:02X}>", piece)
