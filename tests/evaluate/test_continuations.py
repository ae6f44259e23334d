"""The batched log-likelihoods against a plain forward pass per pair, and against lm-eval's own model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.errors import DataError
from recoup.evaluate.continuations import continuation_logp
from recoup.models.load import LanguageModel, load

TEXTS = [
    ("The cat sat on", " the mat"),
    ("The cat sat on", " a very long wall that goes on and on"),
    ("The cat sat on", " it"),
    ("Q", "A"),
    ("A context that is longer than the sliding window of sixty-four tokens, so that it drops out of the cache.", " B"),
    ("A context that is longer than the sliding window of sixty-four tokens, so that it drops out of the cache.", " C"),
    (
        "A context that is longer than the sliding window of sixty-four tokens, so that it drops out of the cache.",
        " Cat!",
    ),
    ("Another one", " the mat"),
]
LAYOUT_NAMES = ["llama", "qwen2", "gemma3_text", "gpt2"]


def pairs_of(model: LanguageModel) -> list[tuple[list[int], list[int]]]:
    encode = model.tokenizer.encode
    return [(encode(a, add_special_tokens=False), encode(b, add_special_tokens=False)) for a, b in TEXTS]


def plain(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One forward pass over one pair: no cache, no pads."""
    ids = torch.tensor([[*context, *continuation[:-1]]])
    logits = model.model(ids).logits[0, len(context) - 1 :].float()
    logp = logits.log_softmax(-1)[torch.arange(len(continuation)), continuation].sum()
    return float(logp), logits.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("batch_tokens", [1, 150, 10_000])  # one row at a time, a few, all at once
def test_equals_a_plain_forward_pass(tiny_models: dict[str, Path], layout: str, batch_tokens: int) -> None:
    model = load(str(tiny_models[layout]))
    pairs = pairs_of(model)
    scores = continuation_logp(model, pairs, batch_tokens)
    for (logp, greedy), pair in zip(scores, pairs, strict=True):
        expected, expected_greedy = plain(model, *pair)
        assert logp == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_greedy_is_what_the_model_would_write(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    context = model.tokenizer.encode("Hello")
    first = int(model.model(torch.tensor([context])).logits[0, -1].argmax())
    second = int(model.model(torch.tensor([[*context, first]])).logits[0, -1].argmax())
    other = (second + 1) % 256
    scores = continuation_logp(model, [(context, [first, second]), (context, [first, other])], 1000)
    assert [greedy for _, greedy in scores] == [True, False]


def test_a_long_context_is_cut_from_the_left(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["gpt2"]))  # 512 positions
    context = [65 + i % 26 for i in range(600)]
    [(logp, _)] = continuation_logp(model, [(context, [66, 67])], 10_000)
    # all but the last token must fit: 511 tokens of context and the first of the continuation
    assert logp == pytest.approx(plain(model, context[-511:], [66, 67])[0], abs=1e-4)


def test_a_continuation_beyond_the_context_is_refused(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["gpt2"]))
    with pytest.raises(DataError, match="513 tokens, the model's context 512"):
        continuation_logp(model, [([65], [66] * 513)], 10_000)


def test_progress_counts_pairs(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    told: list[tuple[int, int]] = []
    continuation_logp(model, [*pairs_of(model), ([65], [])], 150, lambda done, total: told.append((done, total)))
    assert told[-1] == (9, 9)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_an_empty_continuation_is_certain(tiny_model: Path) -> None:
    assert continuation_logp(load(str(tiny_model)), [([65], [])], 100) == [(0.0, True)]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_equals_lm_eval(tiny_models: dict[str, Path], layout: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from recoup.evaluate.log_likelihood import BatchedLM

    model = load(str(tiny_models[layout]))
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=3, backend="causal")
    ours = BatchedLM(model, batch_tokens=400)

    def requests(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
        return [Instance(kind, {}, args, 0, ("t", i, 1)) for i, args in enumerate(arguments)]

    pairs = requests("loglikelihood", [*TEXTS, ("", "no context"), ("space at the end ", "then this")])
    for mine, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
    texts = requests(
        "loglikelihood_rolling", [("a short text",), ("words and words " * 50,)]
    )  # 800 tokens: two windows
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(expected, abs=1e-3)
    prompts = requests("generate_until", [(a, {"until": ["e"], "max_gen_toks": 12}) for a, _ in TEXTS[:4]])
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)


class Passes:
    """Counts forward passes and the tokens of each, pads included."""

    def __init__(self, model: LanguageModel) -> None:
        self.tokens: list[int] = []
        self.hook = model.model.get_input_embeddings().register_forward_pre_hook(self.note)

    def note(self, _: object, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens.append(inputs[0].numel())


OPENING = "Q: one and one?\nA: two\n\nQ: one and two?\nA: three\n\n"  # 50 tokens of a byte each


def opened(model: LanguageModel) -> list[tuple[list[int], list[int]]]:
    """Three contexts of 50 + 3, 5 and 5 tokens; answers of 1, 3 and 4 tokens, each to the first two."""
    encode = model.tokenizer.encode
    contexts = [encode(f"{OPENING}{question}", add_special_tokens=False) for question in ("Q:1", "Q:2+2", "Why\n:")]
    answers = [encode(answer, add_special_tokens=False) for answer in ("7", "777", "seve")]
    return [(context, answer) for context in contexts[:2] for answer in answers] + [(contexts[2], answers[0])]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_a_shared_opening_changes_nothing(tiny_models: dict[str, Path], layout: str, batch_tokens: int) -> None:
    model = load(str(tiny_models[layout]))
    scores = continuation_logp(model, opened(model), batch_tokens)
    for (logp, greedy), pair in zip(scores, opened(model), strict=True):
        expected, expected_greedy = plain(model, *pair)
        assert logp == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_what_is_shared_is_read_once(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["llama"]))
    assert [len(context) for context, _ in opened(model)] == [53] * 3 + [55] * 4
    passes = Passes(model)
    continuation_logp(model, opened(model), 10_000)
    # the opening alone; three contexts less the opening, at most 5 tokens wide; then, for the first two contexts, answers
    # less their last token: 2 and 3 tokens, 3 wide (the answer of one token is scored by the contexts' pass)
    assert passes.tokens == [50, 3 * 5, 4 * 3]


def test_answers_of_one_token_take_one_pass(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    passes = Passes(model)
    continuation_logp(model, [([65, 66, 67], [68]), ([65, 66, 67], [69]), ([70, 71], [68])], 10_000)
    assert passes.tokens == [2 * 3]


def test_a_sliding_window_shares_no_opening(tiny_models: dict[str, Path]) -> None:
    """Pads after the opening would push it out of the window."""
    model = load(str(tiny_models["gemma3_text"]))
    passes = Passes(model)
    continuation_logp(model, opened(model), 10_000)
    # the context with one answer; the others; what is left of their answers
    assert passes.tokens == [55, 2 * 55, 4 * 3]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_one_pass_where_a_cache_would_not_pay(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    alone = [([65, 66, 67], [68, 69, 70]), ([70], [71, 72, 73, 74])]  # lines of 5 and 4 tokens
    short = [([75, 76], [77, 78, 79]), ([75, 76], [80, 81, 82])]  # 4 tokens each; 2 of 8 are read again
    twins = [([75, 76], [77, 78, 83])]  # the first of `short`, but for a token that is never read
    passes = Passes(model)
    scores = continuation_logp(model, alone + short + twins, 10_000)
    assert passes.tokens == [4 * 5]
    for (logp, greedy), pair in zip(scores, alone + short + twins, strict=True):
        expected, expected_greedy = plain(model, *pair)
        assert logp == pytest.approx(expected, abs=1e-4)
        assert greedy == expected_greedy


def test_a_text_is_read_in_one_causal_pass(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, causal = load(str(tiny_model)), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **settings: Any) -> torch.Tensor:
        causal.append((settings["is_causal"], settings.get("attn_mask")))
        return attention(*args, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    continuation_logp(model, [([65], list(range(66, 90))), ([65], list(range(66, 80)))], 10_000)
    assert set(causal) == {(True, None)}
