"""A byte-level BPE tokenizer as GGUF metadata: tokens, their types, merges, special tokens, chat template.

llama.cpp has the rules by which text is split before merging built in, under names (`tokenizer.ggml.pre`). Its converter finds
the name by hashing the ids of a test text, which knows published vocabularies only. We read the rules that the tokenizer itself
states and look for the name with the same ones, so a student's own vocabulary exports too; rules without a name are refused,
since llama.cpp would then split text otherwise than the model was trained on. Source: ggml-org/llama.cpp, src/llama-vocab.cpp
(`llm_tokenizer_bpe`), conversion/base.py (`get_vocab_base`), gguf/vocab.py (`SpecialVocab`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType, GGUFWriter, Keys, TokenType
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from recoup.errors import ExportError

# how text is split, in the words of tokenizer.json; the names are llama.cpp's
GPT2 = "ByteLevel"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# splitting rules and whether a word that is a token is taken whole without merging → llama.cpp's name
PRE_TOKENIZERS = {
    ((GPT2,), False): "gpt-2",
    (("Digits", GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((QWEN35,), False): "qwen35",
    ((TEKKEN,), True): "tekken",
}
NORMALIZERS = {None, "NFC"}  # llama.cpp does not normalize; text is nearly always in NFC already
CONTROL_LOOKING = (
    ("<|", "|>"),
    ("<\uff5c", "\uff5c>"),
    ("<unused", ">"),
)  # not marked special by some models, as in the converter


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp is told about a tokenizer."""

    pre: str  # llama.cpp's name for how text is split
    tokens: Sequence[str]
    types: Sequence[TokenType]
    merges: Sequence[str]


def byte_level(inner: dict[str, Any], added: dict[int, dict[str, Any]], num_tokens: int) -> Vocabulary:
    """The vocabulary of a byte-level BPE tokenizer.

    Args:
        inner: tokenizer.json, parsed.
        added: its added tokens by id.
        num_tokens: rows of the embedding; ids without a token get a name of their own, as llama.cpp wants one for each.

    Raises:
        ExportError: llama.cpp cannot split or merge as this tokenizer does.
    """
    if inner["model"]["type"] != "BPE" or inner["model"].get("byte_fallback"):
        raise ExportError(
            "GGUF: recoup writes byte-level BPE tokenizers; this one is of the SentencePiece kind, whose scores llama.cpp "
            "needs and tokenizer.json does not hold; export to safetensors and use llama.cpp's convert_hf_to_gguf.py"
        )
    tokens, types = token_table(inner["model"]["vocab"], added, num_tokens)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in inner["model"]["merges"]]
    return Vocabulary(_pre_tokenizer(inner, has_merges=bool(merges)), tokens, types, merges)


def token_table(
    vocabulary: dict[str, int], added: dict[int, dict[str, Any]], num_tokens: int
) -> tuple[list[str], list[TokenType]]:
    """Token and type of each id up to `num_tokens`.

    Added tokens beyond the embedding are left out, since no model can read them (transformers adds `<|endoftext|>` to
    any Qwen2 tokenizer, whether or not the model has a row for it).

    Raises:
        ExportError: a token of the vocabulary proper is beyond the embedding.
    """
    if max(vocabulary.values()) >= num_tokens:
        raise ExportError(
            f"GGUF: the tokenizer has {max(vocabulary.values()) + 1} tokens, the embedding {num_tokens} rows"
        )
    contents = {id_: token["content"] for id_, token in added.items() if id_ < num_tokens}
    by_id = {id_: token for token, id_ in vocabulary.items()} | contents
    tokens = [by_id.get(id_, f"[PAD{id_}]") for id_ in range(num_tokens)]
    types = [_type(id_, by_id, added) for id_ in range(num_tokens)]
    return tokens, types


def add_vocabulary(
    writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    """Write the vocabulary, the special ids, what is put around a text, and the chat template.

    Raises:
        ExportError: the tokenizer puts more around a text than a first and a last token.
    """
    writer.add_tokenizer_model("gpt2")  # llama.cpp's word for byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    # not add_token_merges, which leaves out an empty list, and llama.cpp wants the key
    writer.add_key_value(Keys.Tokenizer.MERGES, list(vocabulary.merges), GGUFValueType.ARRAY, GGUFValueType.STRING)
    writer.add_add_space_prefix(False)
    first, last = _surroundings(tokenizer)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(last)
    for key in ("bos", "eos", "unk", "pad"):
        # Qwen2's tokenizer has no first token while its config names one; without any, llama.cpp would take id 11
        for id_ in (getattr(tokenizer, f"{key}_token_id"), getattr(config, f"{key}_token_id", None)):
            if isinstance(id_, int) and id_ < len(vocabulary.tokens):
                getattr(writer, f"add_{key}_token_id")(id_)
                break
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokenizer would write to tokenizer.json.

    Raises:
        ExportError: it is not one of the `tokenizers` library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"GGUF: {type(tokenizer).__name__} has no tokenizer.json; use the fast tokenizer of this model"
        )
    inner: dict[str, Any] = json.loads(backend.to_str())
    return inner


def _pre_tokenizer(inner: dict[str, Any], *, has_merges: bool) -> str:
    model, normalizer = inner["model"], inner["normalizer"]
    if normalizer and normalizer["type"] not in NORMALIZERS:
        raise ExportError(f"GGUF: llama.cpp has no normalizer {normalizer['type']} for byte-level tokens")
    if not has_merges:
        return "gpt-2"  # every byte stays alone, however text is split
    steps = inner["pre_tokenizer"] or {"type": "nothing"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    rules = tuple(rule for step in steps for rule in _rules(step))
    name = PRE_TOKENIZERS.get((rules, bool(model.get("ignore_merges"))))
    if name is None:
        known = ", ".join(PRE_TOKENIZERS.values())
        raise ExportError(f"GGUF: none of llama.cpp's known pre-tokenizers ({known}) splits text as this one: {steps}")
    return name


def _rules(step: dict[str, Any]) -> list[str]:
    """One step of splitting in the words of `PRE_TOKENIZERS`; a step they do not cover is itself, which matches none."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": regex}:
            return [GPT2] if regex else []
        case {"type": "Digits", "individual_digits": True}:
            return ["Digits"]
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": pattern}}:
            return [pattern]
    return [json.dumps(step)]


def _type(id_: int, by_id: dict[int, str], added: dict[int, dict[str, Any]]) -> TokenType:
    if id_ not in by_id:
        return TokenType.UNUSED
    if id_ not in added:
        return TokenType.NORMAL
    looks_special = any(by_id[id_].startswith(a) and by_id[id_].endswith(b) for a, b in CONTROL_LOOKING)
    return TokenType.CONTROL if added[id_]["special"] or looks_special else TokenType.USER_DEFINED


def _surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first (bos) and last (eos) token around a text; found by asking it."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    for first, last in ((False, False), (True, False), (False, True), (True, True)):
        if full == [tokenizer.bos_token_id] * first + bare + [tokenizer.eos_token_id] * last:
            return first, last
    raise ExportError(f"GGUF: the tokenizer makes {full} of {bare}; llama.cpp can add a first and a last token only")
