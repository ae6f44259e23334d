"""The most changed tokens: one token changed by hand in a real pair, the list's limits, and text of parts of characters."""

import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from recoup.data.prompts import Prompt
from recoup.diagnose.changed import BEFORE_CHARACTERS, MOST_TOKENS, changed_tokens, token_text
from recoup.evaluate.fidelity import TokenValues, teacher_values, token_values
from recoup.models.hidden import completion_hidden
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from tests.conftest import byte_tokenizer

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


def written(*texts: str) -> Rollouts:
    return pack([ids("?")] * len(texts), [ids(text) for text in texts], pad=258)


def asked(count: int) -> list[Prompt]:
    return [Prompt(f"question {row}", tuple(ids("?"))) for row in range(count)]


def values(rollouts: Rollouts, kl: list[float]) -> TokenValues:
    kl_N = torch.tensor(kl, dtype=torch.float64)
    return TokenValues(
        num_prompts=len(rollouts.tokens_BT),
        row_N=rollouts.completion_BT.nonzero()[:, 0],
        kl_N=kl_N,
        agrees_N=kl_N < 0,
        reference_nll_N=torch.full_like(kl_N, math.log(2)),
        student_nll_N=torch.full_like(kl_N, math.log(8)),
        student_token_N=torch.full(kl_N.shape, ids("z")[0]),
    )


def test_one_logit_changed_by_hand(tiny_models: dict[str, Path]) -> None:
    """The head's row j gets c · d / |d|², d the part of one token's hidden state that no other token's has.

    So one logit of one token is raised by c. With the teacher's probability q of j there, the student's sum of exponentials is
    1 − q + q e^c times the teacher's, and KL = log(1 − q + q e^c) − c q. A token t that is not j keeps its logit, so its
    student probability is p_T(t) / (1 − q + q e^c).
    """
    teacher, student = load(str(tiny_models["qwen2"])), load(str(tiny_models["qwen2"]))
    rollouts = pack(
        [ids("?"), ids("!")], [ids("abc"), ids("de")], pad=258
    )  # two prompts, so that no two contexts are equal
    changed, raised, c = 3, ids("Q")[0], 12.0  # token 3 is "d", the first of the second completion
    hidden_ND = completion_hidden(teacher.model, rollouts).double()
    others_MD = torch.cat([hidden_ND[:changed], hidden_ND[changed + 1 :]])
    direction_D = hidden_ND[changed] - others_MD.T @ torch.linalg.pinv(others_MD.T) @ hidden_ND[changed]
    head_VD = student.model.get_output_embeddings().weight
    p_V = (head_VD.double() @ hidden_ND[changed]).softmax(-1)
    head_VD.data[raised] += (c * direction_D / direction_D.square().sum()).float()
    (token,) = changed_tokens(
        asked(2), rollouts, token_values(teacher_values(teacher, rollouts), student), teacher.tokenizer
    )
    q, p = float(p_V[raised]), float(p_V[ids("d")[0]])
    growth = 1 - q + q * math.exp(c)
    assert (token.prompt, token.before, token.token, token.student_token) == ("question 1", "", "d", "Q")
    assert token.kl_nats == pytest.approx(math.log(growth) - c * q, rel=1e-3)
    assert token.reference_p == pytest.approx(p, rel=1e-3)
    assert token.student_p == pytest.approx(p / growth, rel=1e-3)


def test_largest_first_and_three_of_a_prompt() -> None:
    rollouts = written("abcde", "fg")
    found = changed_tokens(asked(2), rollouts, values(rollouts, [5, 9, 7, 8, 6, 0.001, 4]), TOKENIZER)
    assert [(token.before, token.token, token.kl_nats) for token in found] == [
        ("a", "b", 9),
        ("abc", "d", 8),
        ("ab", "c", 7),
        ("f", "g", 4),
    ]  # "e" and "a" would be the prompt's fourth and fifth; "f" changed by rounding only
    assert found[0].student_token == "z"
    assert found[0].reference_p == pytest.approx(1 / 2)
    assert found[0].student_p == pytest.approx(1 / 8)


def test_the_list_ends() -> None:
    rollouts = written(*["xyz"] * 9)
    found = changed_tokens(asked(9), rollouts, values(rollouts, [1.0] * 27), TOKENIZER)
    assert len(found) == MOST_TOKENS
    assert [token.prompt for token in found[:4]] == ["question 0"] * 3 + ["question 1"]  # equal ones in their order


def test_text_before_is_cut_and_holds_no_half_characters() -> None:
    rollouts = written("n" * 200 + "\u20ac")  # the euro sign is three bytes, a token each
    found = changed_tokens(asked(1), rollouts, values(rollouts, [0.0] * 200 + [1, 2, 3]), TOKENIZER)
    assert [token.token for token in found] == ["<0xAC>", "<0x82>", "<0xE2>"]
    assert {token.before for token in found} == {"n" * BEFORE_CHARACTERS}


def test_token_text() -> None:
    euro = ids("\u20ac")
    assert token_text(TOKENIZER, ids("I am"), ids(" ")[0]) == " "
    assert token_text(TOKENIZER, [], ids("a")[0]) == "a"
    assert token_text(TOKENIZER, ids("ab"), ids("\n")[0]) == "\n"
    assert token_text(TOKENIZER, ids("ab"), TOKENIZER.eos_token_id) == "<|im_end|>"
    assert [token_text(TOKENIZER, euro[:n], euro[n]) for n in range(3)] == ["<0xE2>", "<0x82>", "<0xAC>"]
    assert token_text(TOKENIZER, euro[:1], ids("a")[0]) == "a"  # the part before it stays a part
    assert token_text(TOKENIZER, ids("a"), 5000) == "<id 5000>"


def test_token_text_with_byte_fallback() -> None:
    """As SentencePiece models have it: a space is `▁`, dropped at the start of a text, and unknown characters are bytes."""
    vocab = {"<unk>": 0, "\u2581a": 1, "b": 2, "\u2581": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    euro = [4 + byte for byte in "\u20ac".encode()]
    assert token_text(tokenizer, [2], 1) == " a"
    assert token_text(tokenizer, [], 1) == "a"
    assert token_text(tokenizer, [1, 2], 2) == "b"
    assert token_text(tokenizer, [], 3) == "\u2581"  # adds nothing that could be seen
    assert [token_text(tokenizer, [1, *euro[:n]], euro[n]) for n in range(3)] == ["<0xE2>", "<0x82>", "<0xAC>"]
