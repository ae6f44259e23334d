"""A tokenizer in the words of llama.cpp."""

from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recoup.errors import ExportError
from recoup.export.gguf_vocab import LLAMA3, QWEN2, _surroundings, byte_level, token_table, tokenizer_json
from tests.conftest import VOCAB, byte_tokenizer

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTE_LEVEL_SPLITTING = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def isolated(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), BYTE_LEVEL])


def tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer, **model: Any) -> PreTrainedTokenizerFast:
    """Bytes, and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id_ for id_, token in enumerate([*alphabet, "th"])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")], **model))
    inner.pre_tokenizer = pre_tokenizer
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def pre(pre_tokenizer: pre_tokenizers.PreTokenizer, **model: Any) -> str:
    return byte_level(tokenizer_json(tokenizer(pre_tokenizer, **model)), {}, 300).pre


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL_SPLITTING, False, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL_SPLITTING]), False, "smollm"),
        (isolated(LLAMA3), True, "llama-bpe"),
        (isolated(LLAMA3), False, "smaug-bpe"),
        (isolated(QWEN2), False, "qwen2"),
    ],
)
def test_splitting_rules_have_llama_cpps_name(
    pre_tokenizer: pre_tokenizers.PreTokenizer, ignore_merges: bool, name: str
) -> None:
    assert pre(pre_tokenizer, ignore_merges=ignore_merges) == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        BYTE_LEVEL,  # merges across words
        isolated(r"\w+"),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), BYTE_LEVEL_SPLITTING]),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
        pre_tokenizers.Whitespace(),
    ],
)
def test_splitting_rules_that_llama_cpp_lacks_are_refused(pre_tokenizer: pre_tokenizers.PreTokenizer) -> None:
    with pytest.raises(ExportError, match=r"none of llama\.cpp's known pre-tokenizers"):
        pre(pre_tokenizer)


def test_normalizers_other_than_nfc_are_refused() -> None:
    inner = tokenizer(BYTE_LEVEL_SPLITTING)
    inner.backend_tokenizer.normalizer = normalizers.NFC()
    assert byte_level(tokenizer_json(inner), {}, 300).pre == "gpt-2"
    inner.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ExportError, match="no normalizer Lowercase"):
        byte_level(tokenizer_json(inner), {}, 300)


def test_sentencepiece_is_refused_in_one_clear_line() -> None:
    with pytest.raises(ExportError, match="of the SentencePiece kind"):
        byte_level(tokenizer_json(tokenizer(BYTE_LEVEL_SPLITTING, byte_fallback=True)), {}, 300)


def test_merges_are_pairs_of_words_and_bytes_alone_have_none() -> None:
    assert byte_level(tokenizer_json(tokenizer(BYTE_LEVEL_SPLITTING)), {}, 300).merges == ["t h"]
    bytes_only = byte_level(tokenizer_json(byte_tokenizer()), {}, VOCAB)
    assert (bytes_only.merges, bytes_only.pre) == ([], "gpt-2")


def test_every_row_of_the_embedding_has_a_token() -> None:
    added = {
        1: {"content": "<end>", "special": True},
        2: {"content": "<think>", "special": False},
        3: {"content": "<|tool|>", "special": False},  # looks special
        9: {"content": "<|endoftext|>", "special": True},  # the embedding has no such row
    }
    tokens, types = token_table({"a": 0}, added, 5)
    assert tokens == ["a", "<end>", "<think>", "<|tool|>", "[PAD4]"]
    assert types == [
        TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED,
    ]  # fmt: skip
    with pytest.raises(ExportError, match="7 tokens, the embedding 5 rows"):
        token_table({"a": 0, "b": 6}, {}, 5)


@pytest.mark.parametrize(
    ("template", "expected"), [("$A", (False, False)), ("<s> $A", (True, False)), ("<s> $A </s>", (True, True))]
)
def test_what_is_put_around_a_text_is_found_by_asking(template: str, expected: tuple[bool, bool]) -> None:
    asked = tokenizer(BYTE_LEVEL_SPLITTING)
    specials = [("<s>", 257), ("</s>", 258)]
    asked.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    assert _surroundings(asked) == expected


def test_more_than_a_first_and_a_last_token_is_refused() -> None:
    asked = tokenizer(BYTE_LEVEL_SPLITTING)
    asked.add_tokens([AddedToken("<x>", special=True)])
    asked.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<x> $A", special_tokens=[("<x>", 259)]
    )
    with pytest.raises(ExportError, match="a first and a last token only"):
        _surroundings(asked)
